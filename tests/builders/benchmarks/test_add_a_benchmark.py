"""docs/add_a_benchmark.md, followed to the letter: its commands, its recipes, and its module as an installed
distribution with an entry point."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import dump, vlmix

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/add_a_benchmark.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Where the page's module is installed."""
    _, plants = blocks("python")
    ((group, points),) = re.findall(r"```toml\n\[project.entry-points.\"(.*?)\"\]\n(.*?)```", PAGE, re.DOTALL)
    info = tmp_path / "site" / "plants-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "plants.py").write_text(plants)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plants\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{points.replace(chr(34), '')}")
    return tmp_path / "site"


@pytest.mark.processes
def test_the_module_works_as_printed(site: Path, tmp_path: Path) -> None:
    asked = [{"id": i, "image": f"{i}.jpg", "question": "Is it a fern?", "answer": "yes"} for i in range(4)]
    dump(tmp_path / "EVAL/plants/plants_test.json", asked)
    rows = [{"question_id": 0, "text": "Yes"}, {"question_id": 1, "text": "no"}, {"question_id": 2, "text": " yes"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = blocks("sh")[-1].removeprefix("vlmix ").split()
    done = vlmix(*command, "--json", cwd=tmp_path, env={"PYTHONPATH": f"{site}:{ROOT}"})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["score"], report["answered"], report["missing"], report["scorer_version"]) == (50.0, 3, 1, 1)
    assert report["interval_method"] == "exact" and report["chance"] == 50


@pytest.mark.slow
@pytest.mark.processes
def test_recipes_and_commands_work_as_printed(site: Path, raw: Path, mixture: Path, tmp_path: Path) -> None:
    """Beside what `vlmix demo` makes, with a model that is trained for two steps."""
    pytest.importorskip("transformers")
    from tests.train.nano import nano
    from vlmix.mixture.mixture import open as open_mixture
    from vlmix.train.run import train

    demo = tmp_path / "demo"
    demo.mkdir()
    (demo / "raw").symlink_to(raw)
    (demo / "mixture").symlink_to(mixture)
    open_mixture(mixture).subset(where="source IN ('vqav2', 'gqa')").save(demo / "questions")
    train(nano(mixture=str(demo / "questions"), out=str(demo / "run"), max_steps=2))
    for file in (*blocks("yaml"), *blocks("python")):
        if name := re.match(r"# (\w+\.(yaml|py))\n", file):
            (tmp_path / name[1]).write_text(file)
    python = f'{sys.executable} -c "from vlmix.cli.main import main; main()"'
    commands = "\n".join(block.replace(" gqa ", " ") for block in blocks("sh")[:-1])  # which takes a minute
    commands = commands.replace("PYTHONPATH=.", "PYTHONPATH=.:$PYTHONPATH")  # where this vlmix is
    script = f'set -e\nvlmix() {{ {python} "$@"; }}\n{commands}'
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{site}:{ROOT}", "COLUMNS": "200"}
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = {
        path.parent.name: json.loads(path.read_text()) for path in (tmp_path / "answers").glob("*/report.json")
    }
    asked = {name: report["answered"] for name, report in found.items()}
    assert asked == {"shapes": 4, "counts": 1, "held-out": 40}
    assert set(found["shapes"]["metrics"]) == {"category/color", "category/presence", "category/count"}
    assert "shapes, all" in done.stdout and "VlmixError" not in done.stderr

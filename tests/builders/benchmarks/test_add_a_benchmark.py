"""docs/add_a_benchmark.md, followed to the letter: as an installed distribution with an entry point."""

import json
import re
from pathlib import Path

import pytest

from tests.helpers import dump, vlmix

ROOT = Path(__file__).parents[3]


@pytest.mark.processes
def test_the_page_works_as_printed(tmp_path: Path) -> None:
    page = (ROOT / "docs/add_a_benchmark.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (points,) = re.findall(r"```toml\n\[project.entry-points.\"(.*?)\"\]\n(.*?)```", page, re.DOTALL)
    info = tmp_path / "site" / "plants-1.0.dist-info"
    info.mkdir(parents=True)
    (tmp_path / "site" / "plants.py").write_text(code)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plants\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{points[0]}]\n{points[1].replace(chr(34), '')}")
    asked = [{"id": i, "image": f"{i}.jpg", "question": "Is it a fern?", "answer": "yes"} for i in range(4)]
    dump(tmp_path / "EVAL/plants/plants_test.json", asked)
    rows = [{"question_id": 0, "text": "Yes"}, {"question_id": 1, "text": "no"}, {"question_id": 2, "text": " yes"}]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (command,) = re.findall(r"```sh\nvlmix (.*?)\n```", page)
    done = vlmix(*command.split(), "--json", cwd=tmp_path, env={"PYTHONPATH": f"{tmp_path / 'site'}:{ROOT}"})
    assert done.returncode == 0, done.stderr
    (report,) = (
        json.loads(done.stdout)["reports"] if "reports" in json.loads(done.stdout) else [json.loads(done.stdout)]
    )
    assert (report["score"], report["answered"], report["missing"], report["scorer_version"]) == (50.0, 3, 1, 1)

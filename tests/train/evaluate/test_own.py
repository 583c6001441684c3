"""Benchmarks of one's own, answered by a model that is real and small: as commands, and in a sweep."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

pytest.importorskip("transformers")

from tests.helpers import vlmix, vlmix_here
from tests.train.nano import NANO
from vlmix.builders import benchmark_named
from vlmix.cli.evaluate import evaluate as evaluate_command
from vlmix.cli.sweep import _backend
from vlmix.cli.sweep import sweep as sweep_command
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.evaluate.evaluate import Task, evaluate
from vlmix.train.sweep.folder import claim
from vlmix.train.sweep.recipe import EvalConfig, load
from vlmix.train.sweep.sweep import run


@pytest.fixture()
def questions(mixture: Path, tmp_path: Path) -> Path:
    """A folder with `beside.yaml`, `inside.yaml` and `held-out.yaml`: the same questions with their images beside and
    inside the rows, and those of a mixture."""
    samples = list(islice((sample for sample in open_mixture(mixture) if sample.source == "vqav2"), 3))
    rows = []
    for number, sample in enumerate(samples):
        (tmp_path / f"{number}.jpg").write_bytes(sample.jpeg or b"")
        rows.append({"question": f"What is {number}?", "answer": "nothing", "image": f"{number}.jpg"})
    (tmp_path / "beside.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inside = [{**row, "image": {"bytes": sample.jpeg, "path": None}} for row, sample in zip(rows, samples)]
    pq.write_table(pa.Table.from_pylist(inside), tmp_path / "inside.parquet")
    open_mixture(mixture).subset(ratio=0.97).save(tmp_path / "trained")
    write(tmp_path, "beside", questions="beside.jsonl")
    write(tmp_path, "inside", questions="inside.parquet")
    write(tmp_path, "held-out", questions=str(mixture), without="trained")
    return tmp_path


def write(folder: Path, name: str, **recipe: Any) -> None:
    plain = {"name": name, "metric": "exact", "max_new_tokens": 3, **recipe}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(plain))


def answers(folder: Path) -> list[str]:
    return [json.loads(line)["text"] for line in (folder / "answers.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.processes
def test_the_command_answers_and_scores_them_without_data(model: Path, questions: Path) -> None:
    names = [f"{name}.yaml" for name in ("beside", "inside", "held-out")]
    done = vlmix("evaluate", *names, "--model", str(model), "--out", "answers", "--json", cwd=questions)
    assert done.returncode == 0, done.stderr
    reports = json.loads((questions / "answers/held-out/report.json").read_text())
    asked = benchmark_named(str(questions / "held-out.yaml")).questions()
    assert len(asked) == reports["answered"] > 10 and reports["benchmark"] == "held-out" and reports["interval"]
    assert answers(questions / "answers/beside") == answers(questions / "answers/inside")
    with_pope = vlmix_here("evaluate", "pope", names[0], "--model", str(model), "--out", "more", cwd=questions)
    assert with_pope.returncode == 2 and "--data is needed: pope" in with_pope.stderr


def test_answers_about_another_picture_are_not_mixed_in(model: Path, questions: Path) -> None:
    def ask() -> None:
        evaluate(str(model), [Task(benchmark=benchmark_named(str(questions / "inside.yaml")))], questions / "out")

    ask()
    ask()
    table = pq.read_table(questions / "inside.parquet").to_pylist()
    table[0]["image"] = table[1]["image"]
    pq.write_table(pa.Table.from_pylist(table), questions / "inside.parquet")
    with pytest.raises(VlmixError, match="holds answers with other questions; choose another --out"):
        ask()


def test_a_sweep_may_move_with_its_questions(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"name": "own", "mixture": str(mixture), "recipe": "nano.yaml", "evaluate": {"sub/held-out.yaml": {}}}
    for place in ("before", "after"):
        (tmp_path / place / "sub").mkdir(parents=True)
        (tmp_path / place / "mixture").symlink_to(mixture)
        write(tmp_path / place / "sub", "held-out", questions="../mixture")
        (tmp_path / place / "sweep.yaml").write_text(yaml.safe_dump(plain))
        monkeypatch.chdir(tmp_path / place)
        claim(load(Path("sweep.yaml"), benchmark_named), tmp_path / "out")
    files = json.loads((tmp_path / "out/sweep.json").read_text())["files"]
    assert list(files) == ["sub/held-out.yaml", "sub/../mixture/manifest.json"]


def test_a_table_that_cannot_be_asked_ends_before_training(questions: Path, mixture: Path, tmp_path: Path) -> None:
    (questions / "nano.yaml").write_text(yaml.safe_dump(NANO))
    plain = {"name": "own", "mixture": str(mixture), "recipe": str(questions / "nano.yaml"), "ratios": [1.0]}
    path, file = questions / "sweep.yaml", str(questions / "beside.yaml")

    def loaded(exams: dict[str, Any], named: Any = benchmark_named) -> Any:
        path.write_text(yaml.safe_dump({**plain, "evaluate": exams}))
        return load(path, named)

    sweep = loaded({file: {"limit": 2}})
    table = str(questions / "beside.jsonl")
    assert sweep.evaluate == {"beside": EvalConfig(limit=2, own=(file, table))}
    claim(sweep, tmp_path / "out")
    (questions / "beside.jsonl").write_text("{}\n")
    with pytest.raises(VlmixError, match="beside.jsonl changed since this sweep started"):
        claim(sweep, tmp_path / "out")
    with pytest.raises(VlmixError, match="beside.jsonl: there are no questions in it"):
        run(sweep, tmp_path / "other", _backend(1))
    assert not (tmp_path / "other").exists()
    for exams, message in {
        "{pope: {}}": "evaluate.pope: missing key `data`, the folder of its official files",
        f"{{{file}: {{data: x}}}}": "it names its questions itself; leave `data` out",
        f"{{{file}: {{own: [x]}}}}": "unknown key 'own'",
        f"{{{file}: {{}}, {questions}/same.yaml: {{}}}}": "two benchmarks are called beside",
        f"{{{questions}/code.yaml: {{}}}}": "os.path:join, which is run only with --allow-code",
    }.items():
        write(questions, "beside", questions="beside.jsonl")
        (questions / "same.yaml").write_text((questions / "beside.yaml").read_text())
        write(questions, "code", questions="beside.jsonl", metric="os.path:join")
        with pytest.raises(VlmixError, match=message):
            loaded(yaml.safe_load(exams))
    assert list(loaded({f"{questions}/code.yaml": {}}, _backend(1, allow_code=True).benchmark).evaluate) == ["code"]


class Started(Exception):
    """In place of processes."""


def test_code_is_allowed_in_processes_that_a_command_starts_too(
    questions: Path, mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def started(*arguments: Any) -> None:
        raise Started(*arguments)

    monkeypatch.setattr("vlmix.cli.evaluate.launch", started)
    monkeypatch.setattr("vlmix.cli.sweep.launch", started)
    monkeypatch.setattr("vlmix.cli.sweep._share", started)
    write(questions, "code", questions="beside.jsonl", metric="os.path:join")
    code = str(questions / "code.yaml")
    (questions / "nano.yaml").write_text(yaml.safe_dump(NANO))
    plain = {"name": "own", "mixture": str(mixture), "recipe": str(questions / "nano.yaml"), "evaluate": {code: {}}}
    (questions / "sweep.yaml").write_text(yaml.safe_dump(plain))
    task = Task(benchmark=benchmark_named(code, allow_code=True))
    for start in (
        lambda allow: evaluate_command([code], "model", tmp_path / "out", nproc=2, allow_code=allow),
        lambda allow: sweep_command(str(questions / "sweep.yaml"), [], tmp_path / "out", jobs=2, allow_code=allow),
        lambda allow: _backend(2, allow).evaluate("model", [task], tmp_path / "out"),
    ):
        with pytest.raises(Started) as found:
            start(True)
        arguments = next(each for each in found.value.args if isinstance(each, list))
        assert "--allow-code" in arguments and "--data" not in arguments
    with pytest.raises(VlmixError, match="which is run only with --allow-code"):
        evaluate_command([code], "model", tmp_path / "out", nproc=2)


@pytest.mark.slow
@pytest.mark.processes
def test_a_sweep_scores_them_by_their_name(questions: Path, mixture: Path, tmp_path: Path) -> None:
    """Through processes of their own, with a function as the metric of one."""
    (questions / "own_metric.py").write_text("def half(prediction, answers, row):\n    return 0.5\n")
    (questions / "nano.yaml").write_text(yaml.safe_dump({**NANO, "max_steps": 1}))
    write(questions, "half", questions="inside.parquet", metric="own_metric:half")
    plain = {
        "name": "own",
        "mixture": str(mixture),
        "recipe": "nano.yaml",
        "ratios": [1.0],
        "seeds": [0, 1],
        "evaluate": {"half.yaml": {}, "held-out.yaml": {"limit": 4}},
    }
    (questions / "sweep.yaml").write_text(yaml.safe_dump(plain))
    command = ["sweep", "sweep.yaml", "--out", "swept", "--jobs", "2"]
    root = str(Path(__file__).parents[3])
    env = {"PYTHONPATH": f"{questions}:{root}"}
    refused = vlmix(*command, cwd=questions, env=env)
    assert refused.returncode == 1 and "own_metric:half, which is run only with --allow-code" in refused.stderr
    done = vlmix(*command, "--allow-code", cwd=questions, env=env)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (questions / "swept/results.jsonl").read_text().splitlines()]
    assert [row["scores"]["half"] for row in rows] == [50, 50]
    assert all(row["questions"] == {"half": 3, "held-out": 4} for row in rows)

"""A sweep's folder: which sweep it belongs to, and what its finished runs left.

SWEEP/
  sweep.json               what is swept; another sweep is refused
  mixtures/<key>/          mixtures built for keys of the mixture recipe
  runs/<name>/subset       the view of the mixture for the run
  runs/<name>/run          the training run, answers/ its answers, result.json its row
  results.jsonl and what `report.write` writes
"""

import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from vlmix.mixture.benchmark.values import NAME as VALUES_NAME
from vlmix.mixture.benchmark.values import Values
from vlmix.mixture.dataset.manifest import NAME as MANIFEST_NAME
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io import strict_yaml as strict
from vlmix.mixture.io.atomic import disk_errors, write_text
from vlmix.mixture.io.digests import sha256 as digest
from vlmix.mixture.io.locks import exclusive_lock
from vlmix.train.sweep.recipe import Choice, Sweep, choices, described
from vlmix.train.sweep.report.aggregate import Result

RESULTS, SPEC = "results.jsonl", "sweep.json"
_GROWING = ("seeds", "ratios", "selections", "embeddings", "files", "published", "stop_early", "overlaps")
"""What may be added to a sweep that is there: its runs are named by these, or do not depend on them. A selection that
is there stays as it is."""


def claim(sweep: Sweep, out: Path) -> None:
    """Make the folder this sweep's."""
    plain, chosen = json.loads(msgspec.json.encode(sweep)), choices(sweep)
    plain["selections"] = msgspec.to_builtins(chosen)
    read = [file for choice in chosen for file in choice.files]
    read += [file for exam in sweep.evaluate.values() for file in exam.own]
    plain["files"] = {file: digest(Path(file)) for file in read}
    path = out / SPEC
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    with locked(out, wait=True):
        if not path.exists():
            if any(out.iterdir()):
                raise VlmixError(f"{out} is not empty and no sweep; choose another --out")
            write_text(path, json.dumps(plain, indent=1) + "\n")
            return
        before = _recorded(out)
        former = before.pop("files")
        earlier: Sweep = strict.convert(before, Sweep, str(path))
        for file, was in former.items():
            if plain["files"].get(file, was) != was:
                raise VlmixError(f"{out}: {file} changed since this sweep started; choose another --out")
        plain["files"] = {**former, **plain["files"]}
        known = {choice.name: choice for choice in choices(earlier)}
        _check_same_selections(known, chosen, plain["files"], out)
        plain["selections"] = msgspec.to_builtins(list({**known, **{each.name: each for each in chosen}}.values()))
        same = {key: value for key, value in before.items() if key not in _GROWING}
        if same == {key: value for key, value in plain.items() if key not in _GROWING}:
            write_text(path, json.dumps(plain, indent=1) + "\n")
            return
    keys = (plain.keys() | before.keys()) - set(_GROWING)
    if other := sorted(key for key in keys if plain.get(key) != before.get(key)):
        differences = "; ".join(f"{key} was {before.get(key)}, here it is {plain.get(key)}" for key in other[:3])
        raise VlmixError(f"{out} is another sweep: {differences}. Choose another --out")


def _check_same_selections(known: dict[str, Choice], chosen: list[Choice], files: dict[str, str], out: Path) -> None:
    """Raises VlmixError for a selection that has the name of an earlier one and is another. Files are the same if their
    contents are."""

    def meaning(choice: Choice) -> Choice:
        embeddings = choice.embeddings and files.get(choice.embeddings, choice.embeddings)
        return msgspec.structs.replace(choice, by=files.get(choice.by, choice.by), embeddings=embeddings)

    for choice in chosen:
        was = known.get(choice.name, choice)
        if meaning(was) != meaning(choice):
            raise VlmixError(
                f"{out} is another sweep: selection {choice.name} was {{{described(was)}}}, here it is "
                f"{{{described(choice)}}}. Give it another name, or choose another --out"
            )


def run_folder(out: Path, run: str) -> Path:
    """Where a run's subset, model, answers and row are."""
    return out / "runs" / run


def row_file(out: Path, run: str) -> Path:
    """The row of a run that has finished."""
    return run_folder(out, run) / "result.json"


def subset_folder(out: Path, run: str) -> Path:
    """The view of the mixture that a run trains on."""
    return run_folder(out, run) / "subset"


def finished(out: Path, names: Collection[str]) -> int:
    """How many of the runs have their result in a folder."""
    return sum(row_file(out, name).exists() for name in names)


def is_sweep(folder: Path) -> bool:
    """Whether a folder is one of a sweep."""
    return (folder / SPEC).is_file()


def recorded_grid(out: Path) -> dict[str, Any]:
    """The grid of the sweep in a folder."""
    grid: dict[str, Any] = _recorded(out)["grid"]
    return grid


def recorded_mixture(out: Path) -> Path | None:
    """The mixture of the sweep in a folder: its path is seen from where the sweep was started, here or in a folder
    above `out`. None if it is not there, or is built by the sweep."""
    mixture: str = _recorded(out).get("mixture", "")
    places = [Path(mixture), *(above / mixture for above in out.absolute().parents)] if mixture else []
    return next((place for place in places if (place / MANIFEST_NAME).is_file()), None)


def _recorded(out: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode((out / SPEC).read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise VlmixError(f"{out / SPEC}: {error}; the file is damaged, choose another --out") from None


def read_rows(out: Path, names: Collection[str] | None = None) -> list[Result]:
    """The rows of the finished runs in a sweep's folder, or of those among them with these names.
    Raises VlmixError for a row that is damaged."""
    files = (out / "runs").glob("*/result.json") if names is None else (row_file(out, name) for name in names)
    rows = [_row(file) for file in sorted(files) if file.exists()]
    return sorted(rows, key=lambda row: (json.dumps(row.grid), row.selection, row.ratio, row.seed))


def _row(file: Path) -> Result:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Result)
    except msgspec.DecodeError as error:
        raise VlmixError(f"{file}: {error}; remove it and run the sweep again, which writes it anew") from None


def read_values(out: Path, rows: Iterable[Result]) -> dict[str, dict[str, Values]]:
    """Run -> benchmark -> what each question adds to the score, for the runs of a sweep's folder."""
    return {
        row.run: {
            name: Values.read(path)
            for name in row.scores
            if (path := run_folder(out, row.run) / "answers" / name / VALUES_NAME).exists()
        }
        for row in rows
    }


@contextmanager
def locked(folder: Path, wait: bool = False) -> Iterator[bool]:
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(folder, wait) as mine:
        yield mine

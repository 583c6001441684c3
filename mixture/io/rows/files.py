"""Which files hold a table, and of what kind each is."""

import json
import re
from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import Literal

from vlmix.mixture.errors import VlmixError

Kind = Literal["parquet", "arrow", "jsonl", "json", "csv", "tar"]
_SUFFIXES: dict[str, Kind] = {
    ".parquet": "parquet", ".arrow": "arrow", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".tar": "tar",
}  # fmt: skip
_PACKED = (".gz", ".zst", ".zip", ".bz2", ".xz", ".tgz")


def find_tables(where: str, folders: Sequence[Path]) -> list[Path]:
    """The files that `where` names, a path or a glob below one of `folders` or anywhere, or a folder: one that
    `datasets` saved, or of files of one kind. In order of their names. Raises VlmixError if there are none."""
    for base in (*folders, Path()):
        place = base / Path(where).expanduser()
        if place.is_file():
            return [place]
        if place.is_dir():
            return _in_folder(place)
        # A folder's name may hold brackets, as FineVision's do: they are meant as written where that exists.
        if found := _globbed(str(place)):
            return found
        if place.parent.is_dir() and (found := sorted(filter(Path.is_file, place.parent.glob(place.name)))):
            return found
    places = ", ".join(str(base / where) for base in (*folders, Path()))
    raise VlmixError(f"{where}: there is no such file or folder; looked at {places}")


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _globbed(pattern: str) -> list[Path]:
    paths = map(Path, glob(pattern, recursive=True))  # noqa: PTH207 (the pattern may be absolute)
    return sorted(path for path in paths if path.is_file())


def _in_folder(folder: Path) -> list[Path]:
    if (folder / "dataset_dict.json").exists():
        splits = _listed(folder / "dataset_dict.json", "splits")
        if splits != ["train"]:
            shown = " or ".join(str(folder / name) for name in splits)
            raise VlmixError(f"{folder} holds the splits {', '.join(splits)}; name one: {shown}")
        return _in_folder(folder / "train")
    if (folder / "state.json").exists():
        return [folder / name for name in _listed(folder / "state.json", "_data_files", "filename")]
    below = sorted(path for path in folder.rglob("*") if path.is_file() and not _is_hidden(path.relative_to(folder)))
    files = [path for path in below if path.suffix.lower() in _SUFFIXES]
    kinds = sorted({path.suffix.lower() for path in files if path.suffix.lower() != ".json"}) or [".json"]
    files = [path for path in files if path.suffix.lower() == kinds[0]]
    if len(kinds) > 1:
        raise VlmixError(f"{folder} holds {' and '.join(kinds)} files; name those that you mean: {folder}/*{kinds[0]}")
    if not files:
        if packed := next((path for path in below if path.suffix.lower() in _PACKED), None):
            raise VlmixError(f"{packed}: packed files are not read; unpack it first")
        there = ", ".join(path.name for path in below[:5]) or "nothing"
        raise VlmixError(f"{folder}: there is no table in it (it has {there}); expected are {', '.join(_SUFFIXES)}")
    parents = {path.parent for path in files}
    if len(parents) > 1:
        folders = ", ".join(sorted(str(parent.relative_to(folder)) for parent in parents)[:4])
        raise VlmixError(
            f"{folder} holds tables in several folders ({folders}); name one, or all: {folder}/**/*{kinds[0]}"
        )
    split_name = re.compile(r"(train|validation|valid|val|test|dev)(?![a-z])")
    named = sorted({found[1] for path in files if (found := split_name.match(path.name))})
    if len(named) > 1:
        raise VlmixError(f"{folder} holds the splits {', '.join(named)}; name one: {folder}/{named[0]}*{kinds[0]}")
    return files


def _listed(path: Path, what: str, key: str | None = None) -> list[str]:
    """The names below the folder of `path` that it lists, as `datasets` writes them."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))[what]
        names = [entry[key] if key else entry for entry in listed]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise VlmixError(f"{path}: not as `datasets` saves it: {type(error).__name__} {error}") from None
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise VlmixError(f"{path} names {name!r}, which is no file beside it")
    return names


def kind_of(path: Path) -> Kind:
    """What a file is, by its first bytes, or by its name where these say nothing."""
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise VlmixError(f"{path}: {error.strerror}") from None
    if not head.strip():
        raise VlmixError(f"{path} is empty")
    if head[:4] == b"PAR1":
        return "parquet"
    if head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
        return "arrow"
    if head[257:262] == b"ustar":
        return "tar"
    if path.suffix.lower() in _PACKED or head[:2] in (b"\x1f\x8b", b"PK") or head[:4] == b"\x28\xb5\x2f\xfd":
        raise VlmixError(f"{path}: packed files are not read; unpack it first")
    kind = _SUFFIXES.get(path.suffix.lower())
    if kind == "json" and head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return "jsonl"
    if kind in ("jsonl", "json", "csv"):
        return kind
    if kind is not None:
        raise VlmixError(f"{path}: the file is damaged, it does not begin as a {kind} file does")
    raise VlmixError(f"{path}: not a table; expected are {', '.join(_SUFFIXES)}")

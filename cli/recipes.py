"""The recipes that come with vlmix."""

import re
from importlib.resources import files
from pathlib import Path

from vlmix.mixture.errors import VlmixError, nearest

DATA, TRAIN, SWEEP = KINDS = "data", "train", "sweep"
"""Kinds of recipes; training recipes and sweeps have a folder each."""


def folder() -> Path:
    """Where the recipes lie: the package's own folder, a link to `recipes/` in a source tree."""
    return Path(str(files("vlmix"))) / "recipes"


def packaged(kind: str) -> dict[str, Path]:
    """Name -> file of the recipes of one kind that come with vlmix."""
    if kind != DATA:
        return {file.stem: file for file in sorted((folder() / kind).glob("*.yaml"))}
    found = [file.relative_to(folder()) for file in sorted(folder().glob("**/*.yaml"))]
    return {file.with_suffix("").as_posix(): folder() / file for file in found if file.parts[0] not in (TRAIN, SWEEP)}


def title(path: Path) -> str:
    """The first sentence of the comment that a recipe begins with."""
    lines = re.match(r"(# (?! ).*\n)*", path.read_text(encoding="utf-8"))
    text = " ".join(line.removeprefix("# ") for line in (lines[0] if lines else "").splitlines())
    return text.partition(". ")[0].removesuffix(".")


def check_overrides(overrides: list[str] | None, key: str) -> None:
    """Raise VlmixError for a path that stands where `key=value` is expected; `key` is what it was meant for."""
    for text in overrides or []:
        if "=" not in text and Path(text).exists():
            wanted = f"{key} {text}" if key.startswith("-") else f"{key}={text}"
            raise VlmixError(f"{text}: changes of the recipe are written key=value; did you mean {wanted}?")


def find(kind: str, name: str) -> Path:
    """The recipe of a kind that `name` means: a path, or the name of a packaged one. Raises VlmixError that names the
    nearest one."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        # A recipe of vlmix is found under its place in the sources, too, wherever vlmix is run.
        at = folder() / path.relative_to("recipes") if path.parts[:1] == ("recipes",) else path
        return at if not path.exists() and at.exists() else path
    known = packaged(kind)
    if name in known:
        return known[name]
    for other, commands in ((DATA, "`vlmix plan` and `build`"), (TRAIN, "`vlmix train`"), (SWEEP, "`vlmix sweep`")):
        if name in packaged(other):
            raise VlmixError(f"{name} is a recipe for {commands}; `vlmix recipes` lists all")
    raise VlmixError(f"there is no recipe {name!r}{nearest(name, known)}; or name a YAML file")

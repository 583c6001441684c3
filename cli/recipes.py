"""The recipes that come with vlmix."""

from importlib.resources import files
from pathlib import Path

from vlmix.mixture.errors import VlmixError, nearest


def folder() -> Path:
    """Where the recipes lie: the package's own folder, a link to `recipes/` in a source tree."""
    return Path(str(files("vlmix"))) / "recipes"


TRAIN, SWEEP = "train", "sweep"
"""Folders of the training recipes and of the sweeps; all others are data recipes."""


def check_overrides(overrides: list[str] | None, key: str) -> None:
    """Raise VlmixError for a path that stands where `key=value` is expected; `key` is what it was meant for."""
    for text in overrides or []:
        if "=" not in text and Path(text).exists():
            wanted = f"{key} {text}" if key.startswith("-") else f"{key}={text}"
            raise VlmixError(f"{text}: changes of the recipe are written key=value; did you mean {wanted}?")


def find(name: str) -> Path:
    """The data recipe that `name` means: a path, or the stem of a packaged one."""
    files = [file.relative_to(folder()) for file in folder().glob("**/*.yaml")]
    data = [file for file in files if file.parts[0] not in (TRAIN, SWEEP)]
    return _find(name, {file.with_suffix("").as_posix(): folder() / file for file in data})


def find_in(kind: str, name: str) -> Path:
    """The training recipe or sweep that `name` means: a path, or the stem of a packaged one."""
    return _find(name, {file.stem: file for file in (folder() / kind).glob("*.yaml")})


def _find(name: str, packaged: dict[str, Path]) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        # A recipe of vlmix is found under its place in the sources, too, wherever vlmix is run.
        at = folder() / path.relative_to("recipes") if path.parts[:1] == ("recipes",) else path
        return at if not path.exists() and at.exists() else path
    if name not in packaged:
        raise VlmixError(f"there is no recipe {name!r}{nearest(name, packaged)}; or name a YAML file")
    return packaged[name]

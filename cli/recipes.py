"""The recipes that come with vlmix."""

from pathlib import Path

from mixture.errors import VlmixError, nearest


def folder() -> Path:
    """Where the recipes lie: beside this module in an installation, beside the packages in a source tree."""
    here = Path(__file__).parent
    installed = here / "_recipes"
    return installed if installed.is_dir() else here.parent / "recipes"


def find(name: str) -> Path:
    """The recipe file that `name` means: a path, or the stem of a packaged recipe."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    packaged = {file.stem: file for file in folder().glob("*.yaml")}
    packaged |= {f"{file.parent.name}/{file.stem}": file for file in folder().glob("*/*.yaml")}
    if name not in packaged:
        raise VlmixError(f"there is no recipe {name!r}{nearest(name, packaged)}; or name a YAML file")
    return packaged[name]

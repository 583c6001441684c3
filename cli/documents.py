"""The documentation that comes with vlmix: pages in Markdown."""

from importlib.resources import files
from pathlib import Path

from vlmix.mixture.errors import VlmixError, nearest


def folder() -> Path:
    """Where the pages lie: the package's own folder, a link to `docs/` in a source tree."""
    return Path(str(files("vlmix"))) / "docs"


def pages() -> dict[str, str]:
    """Name -> title of every page."""
    return {
        path.stem: path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        for path in sorted(folder().glob("*.md"))
        if path.stem not in ("index", "api")  # made for the site alone
    }


def page(name: str) -> str:
    """The text of a page. Raises VlmixError that names the nearest one."""
    if name not in pages():
        raise VlmixError(f"there is no page {name!r}{nearest(name, pages())}")
    return (folder() / f"{name}.md").read_text(encoding="utf-8")

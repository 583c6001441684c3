"""The YAML file of a benchmark of one's own, as it is written."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

from vlmix.mixture.errors import VlmixError


class OwnRecipe(Struct, frozen=True, kw_only=True):
    """Paths are relative to the file."""

    name: str
    """In results, and of the folder of its answers."""
    questions: str
    """A table (see `sources.rows`): a file, a glob, a folder, hf://datasets/…; or a mixture."""
    metric: str
    """exact, contains, vqa, anls, choice, or module:function."""
    images: str = "."
    """Root of the images, where these are not inside the rows."""
    title: str = ""
    prompt: str = ""
    """What the model is asked, with columns in braces; "" is LLaVA's prompt for a short answer or the letter of an
    option."""
    fields: dict[str, str | tuple[str, ...]] = {}
    """Which column holds what."""
    ids: Literal["auto", "row"] = "auto"
    """auto: the column of ids, else row, the number of the row, from 0."""
    where: str | None = None
    """SQL condition that chooses rows, or samples."""
    without: str | None = None
    """For a mixture: a view or another mixture, whose samples are left out."""
    max_new_tokens: Annotated[int, Meta(ge=1)] = 128
    """Longest answer."""
    note: str = ""
    """For the report."""

    def column(self, role: str, default: str, where: str) -> str:
        """The column that `fields` names for `role`. Raises VlmixError, which `where` begins, if it names several."""
        name = self.fields.get(role, default)
        if not isinstance(name, str):
            raise VlmixError(f"{where}: `fields` has several columns for {role}; name one")
        return name

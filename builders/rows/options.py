"""What a recipe says of a source of rows."""

from pathlib import Path
from typing import Annotated

from msgspec import Meta, field

from vlmix.builders.rows.forms import Form
from vlmix.mixture.build.source import Options, RawFolder
from vlmix.mixture.io.hub import HUB, download
from vlmix.mixture.io.rows.files import find_tables
from vlmix.mixture.record import ResponseFormat


class RowsOptions(Options, frozen=True, kw_only=True):
    path: Annotated[
        str,
        Meta(
            description="a file, a glob, a folder of files of one kind or saved by `datasets`: below RAW/rows or RAW, "
            "or any path; or hf://datasets/OWNER/NAME/GLOB"
        ),
    ]
    form: Annotated[
        Form | None, Meta(description="texts, conversations, messages, qa or captions; by default recognised")
    ] = None
    fields: Annotated[
        dict[str, str | tuple[str, ...]],
        Meta(
            description="which column holds what: id, question, answer, choices, correct, caption, image (one or a "
            "list of several), texts, conversations, messages"
        ),
    ] = field(default_factory=dict)
    response_format: Annotated[
        ResponseFormat | None,
        Meta(description="of questions with answers: free by default; short_answer adds the prompt of the style"),
    ] = None
    ids: Annotated[
        str,
        Meta(
            description="auto: the column of ids, else row; row: file and number of the row; content: a hash of texts "
            "and images, which reads all of them; or a column"
        ),
    ] = "auto"
    where_rounds: Annotated[
        str | None,
        Meta(
            description="SQL condition over lists that are parallel to the rounds (relevance_ratings >= 3): rounds "
            "that fail are dropped"
        ),
    ] = None
    columns: Annotated[
        dict[str, str], Meta(description="new name -> column, where a column's own name is taken (image_width: width)")
    ] = field(default_factory=dict)
    without: Annotated[tuple[str, ...], Meta(description="columns that do not travel into samples.parquet")] = ()
    image_root: Annotated[
        str | None, Meta(description="folder or URL of the images; by default the table's folder")
    ] = None
    image_prefix: Annotated[
        str | None, Meta(description="what the rows' paths begin with and the files' do not (/mnt/data/images/)")
    ] = None
    expect: Annotated[
        int | str | None,
        Meta(description="rows of the origin, or a known subset (finevision/docvqa); fewer are reported"),
    ] = None

    @property
    def image_columns(self) -> tuple[str, ...]:
        """The columns of images that the recipe names."""
        named = self.fields.get("image", ())
        return (named,) if isinstance(named, str) else tuple(named)

    def files(self, raw: RawFolder) -> list[Path]:
        """The files of `path`; of the hub, downloaded into its cache."""
        if self.path.startswith(HUB):
            return find_tables(str(download(self.path)), [])
        return find_tables(self.path, [raw.folder, raw.raw])

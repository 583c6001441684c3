"""`vlmix peek`."""

from pathlib import Path
from typing import Annotated

import typer

from vlmix.cli import show
from vlmix.cli.options import JsonOpt
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.atomic import write_text


def peek(
    path: Annotated[str, typer.Argument(help="A file, a folder, a glob, or hf://datasets/OWNER/NAME/GLOB.")],
    recipe: Annotated[
        Path | None, typer.Option("--recipe", help="Write a starter recipe to this new YAML file.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows to look at, with their images; 0: all.", min=0)] = 1000,
    field: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE=COLUMN", help="Which column holds what: question=q, image=photo. Repeatable."),
    ] = None,
    image_root: Annotated[str | None, typer.Option(help="Folder of the images; by default that of the table.")] = None,
    as_json: JsonOpt = False,
) -> None:
    """Look at rows of your own: their form, three samples, what would be dropped, and a recipe to start from."""
    from vlmix.builders.peek import peek as look
    from vlmix.builders.peek import recipe_text

    fields: dict[str, object] = {}
    for text in field or []:
        role, equals, column = text.partition("=")
        if not equals or not column:
            raise VlmixError(f"--field {text}: expected ROLE=COLUMN, as in question=q")
        earlier = fields.get(role)
        fields[role] = column if earlier is None else (*(earlier if isinstance(earlier, tuple) else (earlier,)), column)
    if recipe is not None and recipe.exists():
        raise VlmixError(f"{recipe} exists already; choose another --recipe or remove it")
    options = {name: value for name, value in (("fields", fields), ("image_root", image_root)) if value}
    sight = look(path, rows, **options)
    if recipe is not None:
        write_text(recipe, recipe_text(sight))
    show.sight(sight, recipe, as_json)

"""A sample as a row of LLaVA's JSON, and the hash that names such a row by its content."""

import hashlib
from collections.abc import Sequence
from typing import Any

import msgspec

from vlmix.mixture.dataset.schema import ROLES, extra_of

_OF_OTHER_FORMS = ("form", "inline", "system")


def llava_row(row: dict[str, Any]) -> dict[str, Any]:
    """A row of samples.parquet as a row of LLaVA's JSON.

    `extra` is a JSON object: with a `conversations` key it is the whole original row, to be filled with the texts,
    else it holds the keys that differ from what the sample's id and image say, and, of a row that came in another
    form, what the way back to that form needs.
    """
    turns: list[dict[str, Any]] = row["conversations"]
    origin = extra_of(row)
    if "conversations" in origin:
        extra = origin["conversations"] or [{} for _ in turns]
        return {**origin, "conversations": [{**more, **turn} for more, turn in zip(extra, turns)]}
    plain: dict[str, Any] = {"id": row["id"].partition("/")[2].partition("#")[0]}
    if row["images"]:
        paths = [image["path"] for image in row["images"]]
        plain["image"] = paths if len(paths) > 1 else paths[0]
    own = {name: value for name, value in origin.items() if "form" not in origin or name not in _OF_OTHER_FORMS}
    return {**plain, **own, "conversations": turns}


def row_sha256(image: str, values: Sequence[str], roles: Sequence[str] | None = None) -> str:
    """64 hex digits that name a LLaVA row by what it says.

    The SHA-256 of the JSON list `[image, from, value, from, value, …]`, UTF-8, no spaces, nothing escaped that need
    not be: `json.dumps(…, ensure_ascii=False, separators=(",", ":"))`. `image` is `""` for text only. `roles` default
    to human and gpt alternating. Ids and all other keys of a row are left out.
    """
    flat: list[Any] = [image] * (1 + 2 * len(values))
    flat[1::2] = (ROLES * len(values))[: len(values)] if roles is None else roles
    flat[2::2] = values
    return hashlib.sha256(msgspec.json.encode(flat)).hexdigest()

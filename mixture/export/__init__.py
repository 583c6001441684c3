"""Mixtures in other tools' forms: `vlmix export`.

A form is one module and one entry of `FORMS`. Every form writes whole mixtures and views, keeps the recipe's natural
order where it has one, says of a text-only sample that it has no image, and honours `repeat`. What it writes depends on
the mixture alone and appears whole or not at all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from vlmix.mixture.errors import VlmixError, nearest
from vlmix.mixture.export import dali, energon, hf, internvl, llama_factory, llava_next, messages, ms_swift, trl, wids
from vlmix.mixture.export import texts as text_rows
from vlmix.mixture.export.llava import llava_json
from vlmix.mixture.io.pool import Progress, silent

__all__ = ["FORMS", "Form", "export", "llava_json"]


class Form(NamedTuple):
    """`write` makes the new file or folder `out` of the mixture `folder` and returns the number of rows, repeats
    counted. Its last argument is how many processes may work on it."""

    about: str
    write: Callable[[str | Path, Path, Progress, int], int]


FORMS: dict[str, Form] = {
    "dali": Form("shards with DALI's index files", dali.write),
    "energon": Form("shards with Megatron-Energon's .nv-meta and .tar.idx", energon.write),
    "hf": Form("Parquet for HF datasets, ready to push", hf.write),
    "internvl": Form("InternVL's meta JSON, JSONL per source, images", internvl.write),
    "llama-factory": Form("LLaMA-Factory's dataset_info.json, rows, images", llama_factory.write),
    "llava-json": Form(
        "LLaVA's JSON list, rows as they came",
        lambda folder, out, progress, workers: llava_json(folder, out, None, progress, workers),
    ),
    "llava-next": Form("LLaVA-NeXT's YAML, JSON per source, images", llava_next.write),
    "messages": Form("Parquet of chats with content blocks", messages.write),
    "ms-swift": Form("ms-swift's JSONL with boxes as objects, images", ms_swift.write),
    "texts": Form("Parquet of rounds, as FineVision and nanoVLM have them", text_rows.write),
    "trl": Form("Parquet with TRL's messages and images", trl.write),
    "wids": Form("shards with a wids index", wids.write),
}


def export(
    folder: str | Path,
    to: str,
    out: Path,
    *,
    images: Path | None = None,
    workers: int = 1,
    progress: Progress = silent,
) -> int:
    """Write the mixture or view `folder` in the form `to` as the new file or folder `out`; returns the number of rows.

    `images` is for `llava-json`, whose file can stand beside images that are there already.
    """
    if to not in FORMS:
        raise VlmixError(f"there is no export {to!r}{nearest(to, FORMS)}")
    if images is None:
        return FORMS[to].write(folder, out, progress, workers)
    if to != "llava-json":
        raise VlmixError(f"--images goes with llava-json alone; {to} keeps its images below --out")
    return llava_json(folder, out, images, progress, workers)

"""`ms-swift`: one JSONL with `messages`, `images` and `objects`.

    OUT/train.jsonl    {"messages": [{"role", "content"}], "images": [path], "objects": {…} or null, "channel": source}
    OUT/images/…

Rules, from ms-swift 4.6 (`dataset/preprocessor/core.py`, `template/base.py`): relative images are found below the
environment's `ROOT_IMAGE_DIR`; one `<image>` for each image. `objects` holds what the placeholders `<ref-object>` and
`<bbox>` stand for, in their order: `ref` phrases; `bbox` pixel corners (`bbox_type` real), which ms-swift writes in the
notation of the model that it trains; `image_id` the number of the stored image that each box lies in. `null` where
there are none: an empty object would make a text-only row an image row. `channel` is for its loss per source.

Region and grounding turns are taken apart for this: the box text of `mixture.render` becomes `<bbox>`, the phrase
`<ref-object>`. The file is read as JSON whose types are those of the first 10 MB, so a row with boxes, or else one with
an image, comes first; all others keep their order. `#N` draws rows at random, so a sample with `repeat` n is n rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmix.mixture.boxes import square_text
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.export._folder import IMAGES, json_text
from vlmix.mixture.export._jobs import Entry, texts_in_order
from vlmix.mixture.export._rows import LooseImages, messages, open_whole, parts, plain, row_count, spaced, texts
from vlmix.mixture.io.pool import Progress
from vlmix.mixture.io.staging import new_folder
from vlmix.mixture.record import Box
from vlmix.mixture.render import GROUNDING

REF, BBOX = "<ref-object>", "<bbox>"


def write(folder: str | Path, out: Path, progress: Progress, workers: int = 1) -> int:
    mixture = open_whole(folder)
    with new_folder(out) as partial:
        images = LooseImages(mixture, partial / IMAGES)
        first = _leader(mixture)
        with (partial / "train.jsonl").open("wb") as file:
            if first is not None:
                line = _line(images, first)
                file.write(line.text.encode() * line.times)
            others = _Entry(images, None if first is None else first["root_row"])
            for _, text, _ in texts_in_order(mixture, progress, workers, others, separator=""):
                file.write(text)
    return row_count(mixture)


@dataclass(frozen=True)
class _Entry:
    images: LooseImages
    leader: int | None

    def __call__(self, row: dict[str, Any]) -> Entry | None:
        return None if row["root_row"] == self.leader else _line(self.images, row)


def _line(images: LooseImages, row: dict[str, Any]) -> Entry:
    named = images.add(row)
    values, objects = with_objects(row)
    fields = {
        "messages": messages(values),
        "images": [f"{IMAGES}/{image}" for image in named],
        "objects": objects,
        "channel": row["source"],
    }
    return Entry("", json_text(fields) + "\n", row["repeat"])


def with_objects(row: dict[str, Any]) -> tuple[list[str], dict[str, Any] | None]:
    """(texts with placeholders, objects) of a row of samples.parquet; (its texts, None) if it has no boxes."""
    values = texts(row)
    boxes: dict[int, list[tuple[int, Box]]] = {}
    for box in row["boxes"]:
        boxes.setdefault(box["round"], []).append((box["image"], (box["x1"], box["y1"], box["x2"], box["y2"])))
    if not boxes:
        return values, None
    values = [value.replace(REF, spaced(REF)).replace(BBOX, spaced(BBOX)) for value in values]
    refs: list[str] = []
    listed: list[list[float]] = []
    numbers: list[int] = []
    for nth, of_round in sorted(boxes.items()):
        question, answer = values[2 * nth : 2 * nth + 2]
        of = [(box, row["images"][number]) for number, box in of_round]
        text = ", ".join(square_text(box, image["width"], image["height"]) for box, image in of)
        holes = ", ".join([BBOX] * len(of_round))
        form = row["response_formats"][nth]
        if form == "region_caption" and text in question:
            refs.append(answer)
            question, answer = question.replace(text, holes, 1), REF
        elif form == "grounding" and answer == text and GROUNDING in question:
            before, _, phrase = question.partition(GROUNDING)
            phrase, stop, after = phrase.rpartition(".")  # after: "\n<image>" where the token stands behind
            refs.append(phrase)
            question, answer = f"{before}{GROUNDING}{REF}{stop}{after}", holes
        else:
            continue
        values[2 * nth : 2 * nth + 2] = question, answer
        listed += [list(box) for _, box in of_round]
        numbers += [number for number, _ in of_round]
    return values, {"ref": refs, "bbox": listed, "bbox_type": "real", "image_id": numbers} if listed else None


def _leader(mixture: Reader) -> dict[str, Any] | None:
    """The row that shows every type: the first one with objects, else with an image."""
    with_image: dict[str, Any] | None = None
    for part in parts(mixture):
        if with_image is None or part.has("boxes"):
            for row in plain(part.table()):
                if with_objects(row)[1]:
                    return row
                with_image = with_image or (row if row["images"] else None)
    return with_image

"""RefCOCO, RefCOCO+ and RefCOCOg: referring expressions for objects in COCO images (github.com/lichengunc/refer)."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta

from vlmix.builders import layout
from vlmix.builders.layout import coco
from vlmix.builders.schemas.refcoco import Instances, Picture, Ref, Sentence
from vlmix.builders.sources.duplicates import unique
from vlmix.builders.sources.regions import region
from vlmix.builders.text import phrase
from vlmix.mixture.boxes import box_defect, clip
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.io.pickles import load_plain
from vlmix.mixture.keyed import hash_order, keyed_order
from vlmix.mixture.record import Conversation, ImageRef, Round

RefSet = Literal["refcoco/unc", "refcoco/google", "refcoco+/unc", "refcocog/umd", "refcocog/google"]


class RefCocoOptions(Options, frozen=True, kw_only=True):
    split: Annotated[
        Literal["train", "val", "test", "testA", "testB"],
        Meta(description="official split; unc has train, val, testA, testB, umd train, val, test, google train, val"),
    ] = "train"
    sets: Annotated[
        tuple[RefSet, ...],
        Meta(
            description="which releases and splits by whom; unc and umd, which keep images of RefCOCOg's splits apart"
        ),
    ] = ("refcoco/unc", "refcoco+/unc", "refcocog/umd")
    sentence: Annotated[
        Literal["sent", "raw"], Meta(description="the cleaned, lower-case expression or the one that was typed")
    ] = "sent"
    max_turns: Annotated[
        int,
        Meta(
            ge=1,
            description="an image's expressions are cut into the fewest segments of at most so many, of equal size",
        ),
    ] = 10


def read(raw: RawFolder, options: RefCocoOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """Each expression once, all sets of an image mixed by seed, cut into segments; each asked in a direction sampled by
    seed. `file_name` in the refs is not the image's name, so images go by id."""
    images: dict[int, tuple[Picture, dict[str, Round]]] = {}
    for name in dict.fromkeys(options.sets):
        folder, _, author = name.partition("/")
        instances = raw.json(raw.require(f"{folder}/instances.json"), Instances)
        pictures = unique(instances.images, lambda p: p.id, reject, lambda p: f"refcoco/{p.id:012d}", "image")
        annotations = unique(
            instances.annotations, lambda a: a.id, reject, lambda a: f"refcoco/annotation/{a.id}", "annotation"
        )
        boxes = {number: annotation.bbox for number, annotation in annotations.items()}
        del instances
        path = raw.require(f"{folder}/refs({author}).p")
        refs = _refs(raw, load_plain(raw.read(path), path), path)
        if options.split not in (splits := sorted({ref.split for ref in refs})):
            raise VlmixError(f"{path}: it has no split {options.split!r}, only {', '.join(splits)}")
        refs = [ref for ref in refs if ref.split == options.split]
        said = unique(
            [(ref, sentence) for ref in refs for sentence in ref.sentences],
            lambda pair: pair[1].sent_id,
            reject,
            lambda pair: f"refcoco/{pair[0].image_id:012d}",
            "sentence",
            lambda pair: (pair[0].image_id, pair[0].ann_id, pair[1]),
        )
        kept: dict[int, list[Sentence]] = {}
        for ref, sentence in said.values():
            kept.setdefault(id(ref), []).append(sentence)
        # [S] of each sentence that is kept, ref by ref
        keys = [f"{name}/{sentence.sent_id}" for ref in refs for sentence in kept.get(id(ref), ())]
        directions = iter((hash_order(keys, seed, "refcoco direction") % np.uint64(2) == 0).tolist())
        for ref in refs:
            ref.sentences = kept.get(id(ref), [])
            grounding = list(islice(directions, len(ref.sentences)))
            picture, box = pictures.get(ref.image_id), boxes.get(ref.ann_id)
            identity = f"refcoco/{ref.image_id:012d}"
            if picture is None or box is None:
                missing = f"image {ref.image_id}" if picture is None else f"annotation {ref.ann_id}"
                reject(identity, "no_annotation", f"{name}: ref {ref.ref_id} names {missing}, not in instances.json")
                continue
            for key, qa in _expressions(name, ref, picture, box, options, grounding, reject):
                images.setdefault(picture.id, (picture, {}))[1][key] = qa
    for image_id, (picture, expressions) in images.items():
        keys = list(expressions)
        shuffled = [expressions[keys[i]] for i in keyed_order(keys, seed, "refcoco order")]
        segments = -(-len(shuffled) // options.max_turns)
        for number in range(segments):
            start, end = (len(shuffled) * n // segments for n in (number, number + 1))
            yield Conversation(
                id=f"refcoco/{image_id:012d}#{number}",
                source="refcoco",
                rounds=tuple(shuffled[start:end]),
                # All splits are of train2014.
                images=(ImageRef(coco("train", image_id), picture.width, picture.height),),
            )


def _refs(raw: RawFolder, data: Any, path: Path) -> list[Ref]:
    try:
        return msgspec.convert(data, list[Ref])
    except msgspec.ValidationError as error:
        raise raw.wrong(path, str(error)) from None


def _expressions(
    name: str,
    ref: Ref,
    picture: Picture,
    xywh: tuple[float, float, float, float],
    options: RefCocoOptions,
    grounding: list[bool],
    reject: Rejects,
) -> Iterator[tuple[str, Round]]:
    """(key, round) of each usable expression of a ref, `grounding` or not; the box is clipped to the image."""
    identity = f"refcoco/{picture.id:012d}"
    x, y, w, h = xywh
    box = (x, y, x + w, y + h)
    if defect := box_defect(box, picture.width, picture.height):
        reject(identity, *defect, round=ref.ref_id, record=ref)
        return
    clipped = clip(box, picture.width, picture.height)
    assert clipped is not None
    for asked, sentence in zip(grounding, ref.sentences):
        text = phrase(getattr(sentence, options.sentence))
        if text:
            yield f"{name}/{sentence.sent_id}", region(text, clipped, asked)
        else:
            detail = f"{name}: sentence {sentence.sent_id} of ref {ref.ref_id} is empty"
            reject(identity, "empty_phrase", detail, round=ref.ref_id, record=sentence)


SOURCE = Source(
    name="refcoco",
    title="RefCOCO, RefCOCO+, RefCOCOg",
    homepage="https://github.com/lichengunc/refer",
    license="Apache-2.0 (expressions), CC BY 4.0 (COCO annotations); images COCO (Flickr terms)",
    response_formats=("region_caption", "grounding"),
    files=(
        RawFile("refcoco/instances.json, refcoco/refs(unc).p", "RefCOCO: boxes, expressions"),
        RawFile("refcoco+/instances.json, refcoco+/refs(unc).p", "RefCOCO+"),
        RawFile("refcocog/instances.json, refcocog/refs(umd).p", "RefCOCOg"),
    ),
    read=read,
    options=RefCocoOptions,
    images=layout.COCO,
)

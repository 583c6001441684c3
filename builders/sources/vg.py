"""Visual Genome region descriptions (visualgenome.org)."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from operator import attrgetter
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta, Struct

from vlmix.builders import layout
from vlmix.builders.sources.duplicates import unique
from vlmix.builders.sources.regions import region
from vlmix.builders.text import phrase
from vlmix.mixture.boxes import box_defect, clip
from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.io.json_pieces import Share, Unsplit
from vlmix.mixture.io.official import RawFile
from vlmix.mixture.keyed import integer_hashes
from vlmix.mixture.record import Conversation, ImageRef, Round

_IMAGES_AT_ONCE = 512
_FILES = {"1.2": "region_descriptions.json", "1.0": "region_descriptions_v1.json"}


class VgOptions(Options, frozen=True, kw_only=True):
    version: Annotated[
        Literal["1.2", "1.0"], Meta(description="region_descriptions.json or region_descriptions_v1.json")
    ] = "1.2"
    regions_per_image: Annotated[
        int, Meta(ge=1, description="regions sampled by seed from each image (10 in LLaVA-1.5, A.2)")
    ] = 10
    min_regions: Annotated[
        Annotated[int, Meta(ge=1)] | None,
        Meta(description="images with fewer usable regions are left out; regions_per_image by default"),
    ] = None
    min_side: Annotated[
        float,
        Meta(
            ge=0, lt=1, description="sampled regions with a side below this share of the image's long side are dropped"
        ),
    ] = 0.015


Pixels = Annotated[int, Meta(ge=-(2**31), lt=2**31)]


class Picture(Struct, gc=False):
    image_id: int
    url: str
    width: int
    height: int


class Region(Struct, gc=False):
    """v1.2 says `region_id`, v1.0 says `id`."""

    x: Pixels
    y: Pixels
    width: Pixels
    height: Pixels
    phrase: str
    region_id: Annotated[int, Meta(lt=2**62)] = -1
    id: Annotated[int, Meta(lt=2**62)] = -1


_REGION_ID, _ID = attrgetter("region_id"), attrgetter("id")


class Regions(Struct, gc=False):
    """The regions of an image; its id is `id`, or `image_id` in some copies."""

    regions: list[Region]
    id: int = -1
    image_id: int = -1


def read(raw: RawFolder, options: VgOptions, seed: int, reject: Rejects) -> Iterator[Conversation]:
    """One conversation per image: regions sampled by seed, in that order, each asked in a direction sampled by
    seed. Boxes are clipped to the image. An unusable region that the draw meets is rejected and the next one taken.
    Which images LLaVA took is unknown; `take` draws them by seed."""
    listed = list(raw.elements(raw.require("image_data.json"), Picture))
    told = reject if raw.first else Rejects(reject.source)
    pictures = unique(listed, lambda p: p.image_id, told, lambda p: f"vg/{p.image_id}", "image")
    path = raw.require(_FILES[options.version])
    images = raw.elements(path, Regions, raw.share)
    while batch := list(islice(images, _IMAGES_AT_ONCE)):
        if all(image.id < 0 and image.image_id < 0 for image in batch):
            problem = raw.wrong(path, "its entries have neither `id` nor `image_id`")
            raise problem if raw.share is None else Unsplit(str(problem))  # the batches of a share are others
        yield from _draw(batch, pictures, options, seed, reject)


def split(raw: RawFolder, options: VgOptions, name: str) -> Sequence[Share | None]:
    """The regions in shares; each share reads all sizes."""
    return raw.shares(_FILES[options.version])


def _draw(
    batch: list[Regions], pictures: dict[int, Picture], options: VgOptions, seed: int, reject: Rejects
) -> Iterator[Conversation]:
    known = []
    for image in batch:
        image_id = image.id if image.id >= 0 else image.image_id
        if (picture := pictures.get(image_id)) is None:
            reject(f"vg/{image_id}", "no_image_data", f"image {image_id} is not in image_data.json")
        elif picture.url.count("/") < 2:
            reject(f"vg/{image_id}", "bad_url", f"the URL {picture.url!r} does not contain the image's folder")
        else:
            known.append((picture, image.regions))
    regions = list(chain.from_iterable(listed for _, listed in known))
    counts = [len(listed) for _, listed in known]
    owner = np.repeat(np.arange(len(known)), counts)  # [R] which image a region belongs to
    ids = np.fromiter(map(_REGION_ID, regions), np.int64, len(regions))
    if (ids < 0).any():
        ids = np.where(ids < 0, np.fromiter(map(_ID, regions), np.int64, len(regions)), ids)
    grounding = (integer_hashes(ids, seed, "vg direction") % np.uint64(2) == 0).tolist()
    order = np.lexsort((ids, integer_hashes(ids, seed, "vg regions"), owner)).tolist()
    least = options.min_regions or options.regions_per_image
    end = 0
    for (picture, _), count in zip(known, counts):
        start, end = end, end + count
        identity, width, height = _identity(picture), picture.width, picture.height
        smallest = options.min_side * max(width, height)
        sampled = 0
        rounds: list[Round] = []
        for i in order[start:end]:
            r = regions[i]
            box = (r.x, r.y, r.x + r.width, r.y + r.height)
            why = box_defect(box, width, height)
            said = phrase(r.phrase)
            if why is None and not said:
                why = "empty_phrase", f"region {ids[i]} has no phrase"
            if why is None:
                sampled += 1
                seen = clip(box, width, height)
                assert seen is not None
                if min(seen[2] - seen[0], seen[3] - seen[1]) < smallest:
                    why = "box_tiny", f"region {ids[i]}: a side below {options.min_side} of the image"
                else:
                    rounds.append(region(said, seen, grounding[i]))
            if why is not None:
                reject(identity, *why, round=int(ids[i]), record=r)
            if sampled == options.regions_per_image:
                break
        if sampled < least:
            reject(identity, "few_regions", f"{sampled} usable regions, at least {least} are asked for")
        elif rounds:
            yield Conversation(
                id=identity,
                source="vg",
                rounds=tuple(rounds),
                images=(ImageRef(f"{identity}.jpg", width, height),),
            )


def _identity(picture: Picture) -> str:
    # The folder of an image is the second-last part of its URL.
    return f"vg/{picture.url.split('/')[-2]}/{picture.image_id}"


SOURCE = Source(
    name="vg",
    title="Visual Genome",
    homepage="https://homes.cs.washington.edu/~ranjay/visualgenome/api.html",
    license="CC BY 4.0; images Flickr terms",
    response_formats=("region_caption", "grounding"),
    files=(
        RawFile("image_data.json", "sizes and folders of the images"),
        RawFile("region_descriptions.json", "regions, version 1.2"),
        RawFile("region_descriptions_v1.json", "regions, version 1.0 (`version: '1.0'`)", optional=True),
    ),
    read=read,
    split=split,
    options=VgOptions,
    images=layout.VISUAL_GENOME,
)

"""A source of samples with none to five images, for the checks of exports.

Tokens stand in front, behind, in between, in later turns or are missing; boxes lie in any of the images; some samples
are marked as rows that came in another form; all have columns.
"""

from collections.abc import Iterator

from PIL import Image

from vlmix.mixture.build.source import Options, RawFolder, Rejects, Source
from vlmix.mixture.record import Box, Conversation, ImageRef, Round, Scalar

COUNT = 48
SYSTEM = "You look at <images> with care."


def read(raw: RawFolder, options: Options, seed: int, reject: Rejects) -> Iterator[Conversation]:
    refs = []
    for path in sorted((raw.raw / "coco" / "train2017").glob("*.jpg"))[:32]:
        with Image.open(path) as image:
            refs.append(ImageRef(f"coco/train2017/{path.name}", *image.size))
    for number in range(COUNT):
        count = number % 6
        images = tuple(refs[(5 * number + nth) % len(refs)] for nth in range(count))
        columns: dict[str, Scalar] = {"rating": number % 5 or None, "weight": number / 8, "kind": "abc"[number % 3]}
        yield _sample(number, images, {**columns, "good": number % 2 == 0})


def _sample(number: int, images: tuple[ImageRef, ...], columns: dict[str, Scalar]) -> Conversation:
    count, place = len(images), "front"
    rounds = [Round(f"What are these {count}?", "Things."), Round("And why?", "Nobody knows.\n")]
    extra = ""
    match number // 6 % 8:
        case 0 if images:  # boxes, in the last image and the first
            last, first = images[-1], images[0]
            rounds += [
                Round("", "a corner", "region_caption", boxes=(_box(last),), box_images=(count - 1,)),
                Round("the two", "", "grounding", boxes=(_box(first), _box(last)), box_images=(0, count - 1)),
            ]
        case 1:
            place = "back"
        case 2:  # in between
            place, rounds[0] = "inline", Round(" or ".join(["this <image>"] * count) + "?", "Both.")
        case 3:  # in later turns
            place = "inline"
            rounds = [Round(f"<image>\nTurn {turn}?", f"Yes, {turn}.") for turn in range(count)] or rounds
        case 4 if count > 1:  # fewer tokens than images
            place, rounds[0] = "inline", Round("Is it in <image>?", "No.")
        case 5:
            extra, rounds[0] = '{"form":"texts","inline":true}', Round("<image>\nIs <b> a tag?", "It is.")
            place = "inline"
        case 6:
            extra = f'{{"form":"messages","system":"{SYSTEM}"}}'
            rounds[0] = Round(f"{SYSTEM}\n\n{rounds[0].question}", rounds[0].answer)
        case 7 if not images:  # text that speaks of images
            place, rounds[0] = "inline", Round("What is <image> in XML?", "A tag, <image>.")
    return Conversation(
        id=f"several/{number}",
        source="several",
        rounds=tuple(rounds),
        images=images,
        image_at=place,  # type: ignore[arg-type]
        extra=extra,
        columns=columns,
    )


def _box(image: ImageRef) -> Box:
    return (1.0, 2.0, image.width / 2, image.height - 1.0)


SOURCE = Source(
    name="several",
    title="Several images",
    homepage="https://example.org/several",
    license="none",
    response_formats=("free", "region_caption", "grounding"),
    files=(),
    read=read,
)

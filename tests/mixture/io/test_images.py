import io
import random
import re
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageOps

from vlmix.mixture.build.images import contents, plan_storage, scaled, stored_bytes
from vlmix.mixture.dataset.verify import _image_problem
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.io.image_index import ImageFolder, ImageIndex
from vlmix.mixture.io.images import MAX_SCANNED, ImageInfo, decoded, image_xxh3, probe, thumbnail, too_much_decoding
from vlmix.mixture.record import Conversation, ImageRef, Round

ROOT = Path(__file__).parents[3]


def picture(width: int = 40, height: int = 20) -> Image.Image:
    """Left half red, right half blue, so that turning shows."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("blue", (width // 2, 0, width, height))
    return image


def saved(path: Path, image: Image.Image, kind: str = "JPEG", orientation: int = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if orientation != 1:
        exif[0x0112] = orientation
        exif[0x010F] = "maker"
    image.save(path, kind, **({"exif": exif, "quality": 95} if kind == "JPEG" else {}))
    return path


def stored(path: Path, width: int = 0, height: int = 0, boxed: bool = False) -> tuple[Image.Image, str, bytes]:
    facts = probe(path)
    assert not facts.problem
    how = plan_storage(facts, width, height, boxed)
    assert how is not None
    data = stored_bytes(next(contents([facts])), how)
    image = Image.open(io.BytesIO(data))
    assert image.size == (how.width, how.height)
    assert image.format == "JPEG" and image.getexif().get(0x0112, 1) == 1
    return image, how.transform, data


def test_a_jpeg_is_stored_byte_for_byte(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", picture())
    assert stored(path)[1:] == ("none", path.read_bytes())


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "BMP"])
def test_other_formats_become_jpeg_whatever_they_are_called(tmp_path: Path, kind: str) -> None:
    image, transform, _ = stored(saved(tmp_path / "a.jpg", picture(), kind))
    assert transform == "reencoded" and image.mode == "RGB"
    red, _, blue = image.getpixel((5, 10))
    assert red > 200 and blue < 60


@pytest.mark.parametrize("orientation", range(2, 9))
def test_an_unboxed_photograph_is_turned_upright(tmp_path: Path, orientation: int) -> None:
    path = saved(tmp_path / "a.jpg", picture(), orientation=orientation)
    image, transform, _ = stored(path)
    assert transform == "rotated"
    upright = ImageOps.exif_transpose(Image.open(path))
    assert image.size == upright.size
    for point in ((2, 2), (upright.width - 3, upright.height - 3)):
        assert max(abs(a - b) for a, b in zip(image.getpixel(point), upright.getpixel(point), strict=True)) < 12


def test_the_annotated_size_tells_which_picture_was_seen(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", picture(40, 20), orientation=6)
    upright, transform, _ = stored(path, 20, 40, boxed=True)
    assert transform == "rotated" and upright.size == (20, 40)
    raw, transform, data = stored(path, 40, 20, boxed=True)
    assert transform == "orientation_cleared" and raw.size == (40, 20)
    original = path.read_bytes()
    assert len(data) == len(original)
    assert sum(a != b for a, b in zip(data, original, strict=True)) == 1, "only the orientation's byte may change"


def test_a_copy_that_was_only_resized_takes_its_boxes_along(tmp_path: Path) -> None:
    facts = probe(saved(tmp_path / "a.jpg", picture(40, 20)))
    how = plan_storage(facts, 80, 40, boxed=True)
    assert how is not None
    talk = Conversation(
        id="x",
        source="x",
        images=(ImageRef("a.jpg", 80, 40),),
        rounds=(Round("p", "", "grounding", boxes=((8, 4, 40, 20),)),),
    )
    assert scaled(talk, [how]).rounds[0].boxes == ((4, 2, 20, 10),)
    assert scaled(talk, [how]).images == (ImageRef("a.jpg", 40, 20),)


def test_boxes_on_a_picture_of_another_shape_are_refused(tmp_path: Path) -> None:
    facts = probe(saved(tmp_path / "a.jpg", picture(40, 20)))
    assert plan_storage(facts, 50, 50, boxed=True) is None
    assert plan_storage(facts, 50, 50, boxed=False) is not None


def test_bad_files_are_named(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.jpg", picture(400, 300)).read_bytes()
    cases = {
        "image_empty": b"",
        "image_unknown": b"<html>404</html>",
        "image_damaged": whole[: len(whole) // 2],
    }
    for reason, data in cases.items():
        path = tmp_path / "bad.jpg"
        path.write_bytes(data)
        assert probe(path).problem == reason
    assert probe(saved(tmp_path / "dot.jpg", picture(1, 1), "GIF")).problem == "image_too_small"
    assert probe(tmp_path / "none.jpg").problem == "image_unreadable"
    assert probe(tmp_path / "whole.jpg", max_pixels=1000).problem == "image_too_large"


@pytest.mark.parametrize("mode", ["I;16", "F", "I"])
def test_pixels_of_more_than_eight_bits_are_not_guessed_at(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (20, 20), 30_000).save(tmp_path / "deep.tif")
    assert probe(tmp_path / "deep.tif").problem == "image_mode"


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (30_000, 30_000)).save(path)
    assert path.stat().st_size < 200_000
    assert probe(path).problem == "image_too_large"


def test_the_photographs_that_decoders_stumble_over(real: Path) -> None:
    folder = real / "edge_images"
    problems = {path.name: probe(path).problem for path in sorted(folder.iterdir())}
    bad = {name for name, problem in problems.items() if problem}
    assert bad == {"broken.png", "broken_data_stream.png", "truncated_jpeg.jpg", "multiple_exif.jpg"}
    assert problems["multiple_exif.jpg"] == "image_too_small"
    for name in problems.keys() - bad:
        stored(folder / name)


def test_a_file_that_changes_during_the_build_is_noticed(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", picture())
    facts = probe(path)
    path.write_bytes(b"short")
    with pytest.raises(VlmixError, match="changed during the build"):
        next(contents([facts]))
    path.unlink()
    with pytest.raises(VlmixError, match="No such file"):
        next(contents([facts]))


def names(found: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in found]


def test_images_are_found_under_other_names_folders_and_extensions(tmp_path: Path) -> None:
    for name in (
        "coco/train2014/COCO_train2014_000000000001.jpg",
        "coco/train2017/000000000002.JPG",
        "vg/VG_100K/7.jpg",
        "vg/VG_100K_2/7.jpg",
        "ocr_vqa/images/B01.gif",
        "lcs/images/00453/x.jpg",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    index = ImageIndex(
        [tmp_path],
        {
            "coco/train2017": (ImageFolder("coco/train2014", "COCO_train2014_"),),
            "vg/VG_100K_2": (ImageFolder("vg/VG_100K"),),
            "pretrain": (ImageFolder("lcs/images"),),
        },
    )
    assert names(index.candidates("coco/train2017/000000000001.jpg"), tmp_path) == [
        "coco/train2014/COCO_train2014_000000000001.jpg"
    ]
    assert names(index.candidates("coco/train2017/000000000002.jpg"), tmp_path) == ["coco/train2017/000000000002.JPG"]
    assert names(index.candidates("vg/VG_100K_2/7.jpg"), tmp_path) == ["vg/VG_100K_2/7.jpg", "vg/VG_100K/7.jpg"]
    assert names(index.candidates("ocr_vqa/images/B01.jpg"), tmp_path) == ["ocr_vqa/images/B01.gif"]
    assert names(index.candidates("pretrain/00453/x.jpg"), tmp_path) == ["lcs/images/00453/x.jpg"]
    assert index.candidates("coco/train2017/000000000003.jpg") == []


def test_a_root_may_be_one_datasets_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "coco" / "train2017" / "1.jpg"
    path.parent.mkdir(parents=True)
    path.touch()
    assert ImageIndex([tmp_path / "coco"], {}).candidates("coco/train2017/1.jpg") == [path]


def test_facts_survive_a_journal() -> None:
    import msgspec

    facts = ImageInfo(path="a", bytes=3, width=4, height=5, orientation=6)
    assert msgspec.json.decode(msgspec.json.encode(facts), type=ImageInfo) == facts


def jpeg(size: tuple[int, int], **options: Any) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (90, 120, 60)).save(out, "JPEG", **options)
    return out.getvalue()


def of_many_scans(side: int, times: int) -> bytes:
    """A progressive JPEG whose last scan is there again and again."""
    data = jpeg((side, side), progressive=True, quality=30)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * times + b"\xff\xd9"


EXIF_IN_APP5 = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" * 3000


def with_segments(data: bytes, *segments: bytes) -> bytes:
    return data[:2] + b"".join(segments) + data[2:]


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def chunk(name: bytes, body: bytes = b"") -> bytes:
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (20, 20)).save(out, "PNG")
    return out.getvalue()


def with_chunks(count: int) -> bytes:
    return png()[:33] + chunk(b"abCd") * count + png()[33:]


def animation(frames: int) -> bytes:
    """A PNG of equal frames: two chunks for each."""
    data = png()
    pixels = data[data.index(b"IDAT") + 4 : data.index(b"IEND") - 8]
    parts = [data[:33], chunk(b"acTL", struct.pack(">II", frames, 0))]
    for number in range(frames):
        parts.append(chunk(b"fcTL", struct.pack(">IIIIIHHBB", max(0, 2 * number - 1), 20, 20, 0, 0, 1, 10, 0, 0)))
        parts.append(chunk(b"fdAT", struct.pack(">I", 2 * number) + pixels) if number else chunk(b"IDAT", pixels))
    return b"".join(parts) + chunk(b"IEND")


def tiff(side: int, count: int, big: bool = False) -> bytes:
    """A white TIFF of two strips, whose directory names `count` of them, each at an offset of its own."""
    wide, code = (8, "Q") if big else (4, "I")
    row = (side + 7) // 8
    offsets = (16 + 8 + 20 * 8 + 8) if big else (8 + 2 + 12 * 8 + 4)
    first = offsets + wide * count
    values = {256: side, 257: side, 258: 1, 259: 1, 262: 1, 277: 1, 278: side // 2}
    entries = [struct.pack(f"<HH{code}{code}", tag, 16 if big else 4, 1, value) for tag, value in values.items()]
    entries.insert(5, struct.pack(f"<HH{code}{code}", 273, 16 if big else 4, count, offsets))
    header = struct.pack("<2sHHHQ", b"II", 43, 8, 0, 16) if big else struct.pack("<2sHI", b"II", 42, 8)
    directory = struct.pack("<Q" if big else "<H", len(entries)) + b"".join(entries) + bytes(wide)
    strips = struct.pack(f"<{count}{code}", *range(first, first + count))
    return header + directory + strips + b"\xff" * (row * side + count)


TOO_COMPLEX = {
    "scans": lambda: of_many_scans(9400, 300),
    "more scans": lambda: of_many_scans(1000, 3000),
    "markers": lambda: with_segments(jpeg((20, 20)), segment(0xE5, b"") * 2_000_000),
    "markers after junk": lambda: with_segments(jpeg((20, 20)), b"\0\0", segment(0xE5, b"") * 20_000),
    "markers inside what has no length": lambda: with_segments(
        jpeg((20, 20)), (b"\xff\xf0\xff\xff" + segment(0xE5, b"") * 16_383) * 2
    ),
    "EXIF": lambda: with_segments(jpeg((20, 20)), segment(0xE1, b"Exif\0\0MM\0*\0\0\0\x08\0\0" + bytes(9000)) * 300),
    "chunks": lambda: with_chunks(200_000),
    "strips": lambda: tiff(9400, 60),
    "strips without pixels": lambda: tiff(16, 1_000_001),
    "strips of a BigTIFF": lambda: tiff(16, 1_000_001, big=True),
}


@pytest.mark.processes
@pytest.mark.parametrize("kind", TOO_COMPLEX)
def test_images_made_to_take_for_ever_are_rejected_by_counting(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(TOO_COMPLEX[kind]())
    code = "from vlmix.mixture.io.images import probe; from pathlib import Path; "
    code += f"print(probe(Path({str(path)!r})).problem)"
    cpu = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CPU, (20, 20))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, **cpu)
    assert done.stdout == "image_too_complex\n", done.stderr


def photograph() -> bytes:
    """12 megapixels of a camera, after them a film: bytes in which markers turn up by chance."""
    return jpeg((4000, 3000)) + random.Random(0).randbytes(14 * 2**20)


def of_many_frames() -> bytes:
    """What panoramas and depth cameras append: further JPEGs behind the end of the first."""
    return jpeg((3000, 2000), progressive=True) + jpeg((3000, 2000), progressive=True) * 40


SOUND = {
    "progressive": lambda: jpeg((3000, 2000), progressive=True),
    "a long ICC profile": lambda: with_segments(
        jpeg((20, 20)), *(segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000)) for _ in range(200))
    ),
    "a film": photograph,
    "further pictures": of_many_frames,
    "scans in a comment": lambda: with_segments(jpeg((3000, 2000)), segment(0xFE, b"\xff\xda" * 1000)),
    "restarts": lambda: jpeg((3000, 2000), restart_marker_blocks=1),
    "chunks": lambda: with_chunks(500),
    "zeros behind the end": lambda: png() + bytes(200_000),
    "frames": lambda: animation(6000),
    "strips": lambda: tiff(1000, 2),
    "strips of a BigTIFF": lambda: tiff(1000, 2, big=True),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_encoders_and_cameras_write_is_not_too_complex(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(SOUND[kind]())
    assert not probe(path).detail


def test_scans_are_counted_whatever_lies_between_them() -> None:
    data = jpeg((2000, 2000), progressive=True, quality=30)
    _, *others = (found.start() for found in re.finditer(b"\xff\xda", data))
    between = segment(0xE5, b"\xff\xd9 \xff\xda") + b"\xff\xd3\xff\xff" + segment(0xFE, b"\xff\xd9")
    parts = [data[start:end] for start, end in zip([0, *others], [*others, None])]
    stuffed = between.join(parts)
    with Image.open(io.BytesIO(stuffed)) as image, Image.open(io.BytesIO(data)) as same:
        assert image.tobytes() == same.tobytes()  # so the decoder has met all scans
    times = MAX_SCANNED // (2000 * 2000) - len(others)
    for more, excess in ((times - 1, False), (times, True)):
        longer = stuffed[:-2] + (between + parts[-1][:-2]) * more + stuffed[-2:]
        with Image.open(io.BytesIO(longer)) as image:
            assert bool(too_much_decoding(image, longer)) is excess, more


def test_verify_decodes_no_image_of_too_many_scans() -> None:
    data = of_many_scans(9400, 30)
    row = {"xxh3": image_xxh3(data), "width": 9400, "height": 9400}
    assert "pixels over all scans" in (_image_problem(data, row, built=False) or "")


@pytest.mark.processes
def test_only_the_exif_of_a_camera_is_searched_for_the_orientation(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = with_segments(jpeg((40, 20), exif=exif), *[segment(0xE5, EXIF_IN_APP5)] * 5)
    path = tmp_path / "x.jpg"
    path.write_bytes(data)
    code = (
        "import sys; from vlmix.mixture.build.images import _without_orientation; from pathlib import Path\n"
        f"data = Path({str(path)!r}).read_bytes(); out = _without_orientation(data)\n"
        "print(len(out) == len(data), sum(a != b for a, b in zip(data, out)))"
    )
    cpu = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_CPU, (10, 10))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120, **cpu)
    assert done.stdout == "True 1\n", done.stderr


def test_no_real_photograph_is_too_complex(real: Path) -> None:
    found = [path for path in real.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png")]
    assert len(found) > 20
    assert not [path for path in found if probe(path).problem == "image_too_complex"]


def test_a_thumbnail_shows_the_image_and_holds_nothing_else() -> None:
    out = io.BytesIO()
    picture(2000, 1000).save(out, "JPEG", quality=95, comment=b"secret" * 9000)
    small = thumbnail(out.getvalue(), 100)
    with Image.open(io.BytesIO(small)) as image:
        assert (image.format, image.size) == ("JPEG", (100, 50))
        for at, color in ((20, (255, 0, 0)), (80, (0, 0, 255))):
            assert max(abs(a - b) for a, b in zip(image.getpixel((at, 25)), color)) < 12  # type: ignore[arg-type]
    assert b"secret" not in small and len(small) < 2000
    assert decoded(out.getvalue()).size == (2000, 1000)
    assert decoded(jpeg((40, 30)), 100).size == (40, 30), "none is made larger"
    assert decoded(jpeg((9000, 12)), 100).size == (100, 1)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "cannot identify"),
        (b"\x1b]0;t\x07 no image", "cannot identify"),
        (jpeg((400, 300), quality=95)[:700], "truncated"),
        (png()[:40], "truncated|cannot identify"),
        (with_chunks(20_000), "more than 10000 chunks"),
        (tiff(9400, 60), "over all strips"),
    ],
)
def test_what_has_no_thumbnail_says_why(data: bytes, why: str) -> None:
    with pytest.raises(VlmixError, match=why) as error:
        thumbnail(data, 100)
    assert str(error.value).isprintable()

import io
import tarfile
from pathlib import Path

import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from vlmix.mixture.dataset.tar import Member, TarWriter, header, scan
from vlmix.mixture.errors import VlmixError

FILES = {"000000000.jpg": b"\xff\xd8" + b"x" * 1000, "000000000.json": b"{}", "000000001.json": b'{"a": 1}'}


def written(path: Path) -> list[Member]:
    with path.open("wb") as file:
        tar = TarWriter(file)
        members = [tar.add(name, data) for name, data in FILES.items()]
        tar.close()
    return members


@given(st.from_regex(r"[a-z0-9]{1,90}\.jpg", fullmatch=True), st.integers(0, 8**11 - 1))
def test_headers_are_those_of_the_standard_library(name: str, size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    assert header(name, size) == info.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("x" * 101, 1), ("", 1), ("a", 8**11), ("a", -1)])
def test_what_ustar_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(ValueError, match="USTAR"):
        header(name, size)


def test_other_readers_see_the_same_files_at_the_same_places(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    members = written(path)
    data = path.read_bytes()
    with tarfile.open(path) as tar:
        assert [(m.name, m.offset_data, m.size) for m in tar] == [tuple(m) for m in members]
        assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) for m in tar)
    assert [data[m.offset : m.offset + m.size] for m in members] == list(FILES.values())
    assert len(data) % 10240 == 0
    assert list(scan(path)) == members
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [s["__key__"] for s in samples] == ["000000000", "000000001"]
    assert samples[0]["jpg"] == FILES["000000000.jpg"]


@pytest.mark.parametrize("cut", [0, 100, 512, 1700])
def test_a_truncated_shard_is_told(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.tar"
    written(path)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(VlmixError, match="empty|truncated"):
        list(scan(path))


def test_a_damaged_header_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    written(path)
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)
    with pytest.raises(VlmixError, match="header at byte 0 is damaged"):
        list(scan(path))
    path.write_bytes(b"no tar at all " * 100)
    with pytest.raises(VlmixError, match="no tar header"):
        list(scan(path))


def test_a_writer_ends_its_archive_where_it_says() -> None:
    out = io.BytesIO()
    tar = TarWriter(out)
    tar.close()
    assert tar.position == len(out.getvalue()) == 10240

from pathlib import Path

import pytest

from vlmix.mixture.io.staging import HELD, staging_folder


def test_half_files_of_lost_workers_do_not_get_into_the_folder(tmp_path: Path) -> None:
    with staging_folder(tmp_path / "out") as (partial, work, _):
        (partial / "train").mkdir()
        (partial / "train" / "a.tar").touch()
        (partial / "train" / ".a.tar.other-host.17.tmp").touch()
        assert (work / HELD).is_file()
    assert [path.relative_to(tmp_path).as_posix() for path in sorted(tmp_path.rglob("*"))] == [
        "out",
        "out/train",
        "out/train/a.tar",
    ]


def test_each_hold_has_a_mark_of_its_own(tmp_path: Path) -> None:
    marks = []
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), staging_folder(tmp_path / "out") as (partial, work, _):
            marks.append((work / HELD).read_text())
            (partial / "kept").touch()
            raise KeyboardInterrupt
        assert (tmp_path / "out.partial" / "kept").exists() and not (work / HELD).exists()
    assert marks[0] != marks[1]

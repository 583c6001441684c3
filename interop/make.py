"""Make what the checks read: miniature mixtures and all their exports, below the folder given.

whole      the sample recipe
repeated   in natural order, OK-VQA seen 2.5 times per epoch
view       30 % of `repeated`
<case>.json     what every reader must find, taken from samples.parquet and the tars with the standard library
<case>/<form>   the exports
"""

import hashlib
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import polars as pl

FORMS = ("dali", "energon", "hf", "internvl", "llama-factory", "llava-json", "llava-next", "ms-swift", "trl", "wids")
CASES = ("whole", "repeated", "view")


def main(folder: Path) -> None:
    work = folder.with_name(folder.name + ".making")
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    raw, mixtures = work / "raw", work / "mixtures"
    mixtures.mkdir(parents=True)
    vlmix("sample", raw)
    vlmix("build", "sample", "--raw", raw, "--out", mixtures / "whole")
    changed = ["order=natural", "sources.okvqa.repeat=2.5"]
    vlmix("build", "sample", "--raw", raw, "--out", mixtures / "repeated", *changed)
    vlmix("subsample", mixtures / "repeated", "--ratio", 0.3, "--out", mixtures / "view")
    for case in CASES:
        root = mixtures / ("repeated" if case == "view" else case)
        (work / f"{case}.json").write_text(json.dumps(expected(mixtures / case, root)), encoding="utf-8")
        for form in FORMS:
            vlmix("export", mixtures / case, "--to", form, "--out", work / case / form)
    work.rename(folder)


def vlmix(*arguments: object) -> None:
    command = [sys.executable, "-c", "from vlmix.cli.main import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def expected(mixture: Path, root: Path) -> list[dict[str, object]]:
    """The samples in the order in which rows must come, with the sha256 of their image."""
    frame = pl.read_parquet(root / "samples.parquet")
    if mixture != root:
        kept = pl.read_parquet(mixture / "samples.parquet")["root_row"].to_list()
        frame = frame[kept]
    if json.loads((root / "manifest.json").read_text())["recipe"]["order"] == "natural":
        frame = frame.sort("natural_index")
    members = {}
    for path in sorted((root / "train").glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                members[member.name] = file.read()
    found = []
    for row in frame.to_dicts():
        image = members.get(f"{row['key']}.jpg")
        names = ("id", "source", "image", "width", "height", "repeat", "conversations", "response_formats", "boxes")
        found.append(
            {**{name: row[name] for name in names}, "sha256": hashlib.sha256(image).hexdigest() if image else None}
        )
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

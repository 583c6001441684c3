"""Make what the checks read: miniature mixtures and all their exports, below the folder given.

whole      the sample recipe
several    samples with none to five images
repeated   both, in natural order, OK-VQA seen 2.5 times per epoch, the samples with several images 1.5 times
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
import yaml
from several import SOURCE

from vlmix.builders import known_sources
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.export import FORMS, export

CASES = ("whole", "several", "repeated", "view")
RECIPE = Path(__file__).parent.parent / "recipes" / "sample.yaml"


def main(folder: Path) -> None:
    work = folder.with_name(folder.name + ".making")
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    raw, mixtures = work / "raw", work / "mixtures"
    mixtures.mkdir(parents=True)
    vlmix("sample", raw)
    whole = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    both = {**whole["sources"], "okvqa": {"repeat": 2.5}, "several": {"repeat": 1.5}}
    recipes = {
        "whole": whole,
        "several": {"name": "several", "samples_per_shard": 20, "sources": {"several": {}}},
        "repeated": {**whole, "order": "natural", "sources": both},
    }
    known = {**known_sources(), "several": SOURCE}
    for name, recipe in recipes.items():
        build(parse(recipe, known, name), known, raw, mixtures / name)
    vlmix("subsample", mixtures / "repeated", "--ratio", 0.3, "--out", mixtures / "view")
    for case in CASES:
        root = mixtures / ("repeated" if case == "view" else case)
        (work / f"{case}.json").write_text(json.dumps(expected(mixtures / case, root)), encoding="utf-8")
        for form in FORMS:
            export(mixtures / case, form, work / case / form)
    work.rename(folder)


def vlmix(*arguments: object) -> None:
    command = [sys.executable, "-c", "from vlmix.cli.main import main; main()", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def expected(mixture: Path, root: Path) -> list[dict[str, object]]:
    """The samples in the order in which rows must come, with their images' sha256 and sizes, and the columns that
    sources gave."""
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
    names = ["id", "source", "width", "height", "repeat", "conversations", "response_formats", "boxes", "extra"]
    for row in frame.to_dicts():
        stored = [members[f"{row['key']}.{f'{n}.' if n else ''}jpg"] for n in range(row["num_images"])]
        images = [
            {"sha256": hashlib.sha256(data).hexdigest(), "size": [image["width"], image["height"]]}
            for data, image in zip(stored, row["images"])
        ]
        columns = {name: row[name] for name in frame.columns if name in ("rating", "weight", "kind", "good")}
        found.append({**{name: row[name] for name in names}, "images": images, "columns": columns})
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))

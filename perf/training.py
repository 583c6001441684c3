"""Padding waste and step time of packed batches, of padded ones, and of LLaVA's own length-grouped sampler.

Waste (no model): whole epochs over an index of 665,298 samples with the sources, rounds and words of LLaVA-1.5's
mixture, and over the mixture of `--mixture`, as 8 ranks with 16 samples each see them. Of all positions that the ranks
compute, the waste is those without a token; the imbalance is the tokens of the fullest rank over the mean rank; the
cost is the positions of the slowest rank over the tokens of the mean one, 1 being a step without waste or waiting.
LLaVA's sampler balances words, as LLaVA does; vlmix tokens.

Steps: one model of random weights is trained over the same samples, the first global batches of a mixture, in each of
the ways, through the trainer's own collator, loader and model. LLaVA's sampler has its own order of them, and a window
of 8 its own batches: the same samples over a whole epoch, as of the made-up mixture. All ranks' shares run one after
the other in this process; the slowest share of each step is what a step would take on real ranks. On the CPU one
thread computes, timed by its processor time, which a busy machine disturbs less, and one worker prepares batches. The
made-up mixture has the shape of the real one and photographs of 640x480; `--mixture` names another.

Runs on CUDA too: `--model 1b` or `--model 7b` takes a Llama of that size with CLIP-L-336, in bf16, with and without
compile, and prints tokens/s, MFU and the peak memory of each GPU; `--nproc N` shares the ranks among N GPUs. 7b needs
112 GB for weights, gradients and the optimizer's state, over all GPUs.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import (
    Clock,
    Facts,
    Measured,
    alternate,
    execute,
    machine,
    parser,
    perform,
    photographs,
    run,
    table,
    work_folder,
)
from numpy.typing import NDArray

from vlmix.mixture.schedule.packing import packed_shares, shares
from vlmix.mixture.schedule.schedule import Schedule

if TYPE_CHECKING:
    from vlmix.mixture.mixture import Mixture
    from vlmix.train.batches import Collator, MicroBatch
    from vlmix.train.config import Recipe

Numbers = NDArray[np.int64]
Step = list[list[Numbers]]
"""What a step is: for every rank its micro-batches, each the positions of its samples."""

LENGTH, IMAGE_TOKENS = 2_048, 576
OPENING, EXCHANGE = 36, 10  # tokens of the vicuna template: before the first question, and around each round


@dataclass(frozen=True)
class Shape:
    """A source: rows, how often (weight) a row has how many rounds, words of a question and of an answer."""

    rows: int
    rounds: dict[int, float]
    question: float
    answer: float
    tokens: float
    """Tokens of a word."""


# Rows, and rounds where there are several, are counts over the real mixture's rows. Words are means over 136 real
# rows, tokens of a word those of a Llama-like tokenizer of 32,000 over the same rows (boxes and OCR take more).
# ShareGPT's lengths are assumed: the released rows end at 2,048 tokens, their distribution was not at hand.
SHAPES = {
    "llava_instruct": Shape(157_712, {1: 65, 3: 1, 4: 14, 5: 20}, 10.6, 50, 1.3),
    "vqav2": Shape(82_783, {3: 44, 4: 22, 5: 10, 6: 9, 7: 4, 9: 4, 12: 4, 18: 2, 25: 1}, 8.7, 1.1, 1.36),
    "okvqa": Shape(8_998, {1: 100}, 20.8, 1.2, 1.32),
    "gqa": Shape(72_140, {1: 3, 3: 8, 6: 15, 10: 22, 14: 20, 18: 15, 24: 10, 32: 5, 45: 2}, 9.8, 1, 1.2),
    "ocrvqa": Shape(80_000, {3: 2, 4: 19, 5: 79}, 8.2, 3.7, 1.43),
    "aokvqa": Shape(66_160, {1: 97, 2: 3}, 27.8, 1, 1.67),
    "textcaps": Shape(21_953, {1: 100}, 26.2, 12, 2.64),
    "refcoco": Shape(48_447, {1: 10, 2: 8, 3: 1, 4: 4, 5: 1, 6: 12, 7: 22, 8: 31, 9: 8, 10: 3}, 16.2, 4.7, 2.12),
    "vg": Shape(86_417, {6: 1, 7: 2, 8: 4, 9: 14, 10: 79}, 14, 4.2, 2.28),
    "sharegpt": Shape(40_688, {1: 20, 2: 20, 3: 20, 5: 20, 8: 20}, 30, 170, 1.4),
}
_LONE_ANSWER = 115  # words of LLaVA-Instruct's descriptions and reasoning, whose rows have one round
_SPREAD = {"sharegpt": 0.9}  # sigma of the logarithm of a text's words
_FOLDERS = {"gqa": "gqa/images", "ocrvqa": "ocr_vqa/images", "textcaps": "textvqa/train_images", "vg": "vg/VG_100K"}


@dataclass(frozen=True)
class Index:
    """N samples: which have an image, whitespace words over all turns, and tokens as the model takes them."""

    images: NDArray[np.bool_]
    words: Numbers
    tokens: Numbers
    rows: Numbers
    repeat: NDArray[np.int32]

    @classmethod
    def load(cls, path: Path) -> "Index":
        kept = np.load(path)
        return cls(**{name: kept[name] for name in cls.__dataclass_fields__})

    def save(self, path: Path) -> None:
        np.savez(path, **{name: getattr(self, name) for name in self.__dataclass_fields__})

    def order(self, global_batch: int, window: int = 1) -> Schedule:
        return Schedule(
            self.rows, self.images, self.repeat, self.tokens, seed=0, global_batch=global_batch, length_window=window
        )

    @property
    def seen(self) -> Numbers:
        """Positions of an epoch, in mixture order."""
        return np.repeat(np.arange(len(self.rows)), self.repeat)


def draw(name: str, count: int, rng: np.random.Generator) -> tuple[Numbers, Numbers, Numbers]:
    """Rounds of `count` rows [count]; words of all questions, and of all answers, row after row."""
    shape = SHAPES[name]
    weights = np.array(list(shape.rounds.values()))
    rounds = rng.choice(np.array(list(shape.rounds)), count, p=weights / weights.sum())
    sigma = _SPREAD.get(name, 0.4)
    answer = np.full(int(rounds.sum()), shape.answer, dtype=float)
    if name == "llava_instruct":
        answer[np.repeat(rounds == 1, rounds)] = _LONE_ANSWER

    def spread(mean: Any) -> Numbers:
        words = mean * rng.lognormal(-(sigma**2) / 2, sigma, len(answer))
        return np.maximum(1, words.round()).astype(np.int64)

    return rounds, spread(shape.question), spread(answer)


def made_up(scale: float) -> Index:
    """The index of the real mixture's shape, its rows shuffled."""
    rng = np.random.default_rng(0)
    images, words, tokens = [], [], []
    for name, shape in SHAPES.items():
        rounds, question, answer = draw(name, max(round(shape.rows * scale), 1), rng)
        starts = np.cumsum(rounds) - rounds
        said = np.add.reduceat(question + answer, starts)
        image = name != "sharegpt"
        whole = (said * shape.tokens).round().astype(np.int64) + OPENING + EXCHANGE * rounds + IMAGE_TOKENS * image
        images.append(np.full(len(said), image))
        words.append(said)
        tokens.append(np.minimum(whole, LENGTH))
    count = sum(map(len, words))
    shuffled = rng.permutation(count)
    joined = (np.concatenate(parts)[shuffled] for parts in (images, words, tokens))
    return Index(*joined, np.arange(count), np.ones(count, dtype=np.int32))


# The ways.


def llavas_order(
    seen: Numbers, index: Index, micro: int, world: int, rng: np.random.Generator, mixed: bool = True
) -> list[Numbers]:
    """Steps of `group_by_modality_length`, after its description of haotian-liu/LLaVA, llava/train/llava_trainer.py.

    Each modality is shuffled, cut into mega-batches of micro x world, each sorted by words and dealt to `world`
    chunks of about equal sums. The mega-batches are shuffled, but for the last of each modality: those two are joined
    in the order of their rows and come at the end (`mixed=False` shuffles them like the others).
    """
    mega = micro * world

    def grouped(members: Numbers) -> list[Numbers]:
        shuffled = rng.permutation(members)
        cuts = [shuffled[i : i + mega] for i in range(0, len(shuffled), mega)]
        flat = np.concatenate([_dealt(cut, index.words, world) for cut in cuts])
        return [flat[i : i + mega] for i in range(0, len(flat), mega)]

    modalities = [members for members in (seen[index.images[seen]], seen[~index.images[seen]]) if len(members)]
    if len(modalities) == 1:
        return grouped(modalities[0])
    batches, last = [], []
    for members in modalities:
        found = grouped(members)
        batches += found[:-1] if mixed else found
        last.append(found[-1])
    batches = [batches[i] for i in rng.permutation(len(batches))]
    if mixed:
        joined = np.sort(np.concatenate(last))
        batches += [joined[i : i + mega] for i in range(0, len(joined), mega)]
    return batches


def _dealt(members: Numbers, words: Numbers, chunks: int) -> Numbers:
    ordered = members[np.argsort(-words[members], kind="stable")].tolist()
    if len(ordered) % chunks:
        return np.array([i for chunk in range(chunks) for i in ordered[chunk::chunks]], dtype=np.int64)
    room = len(ordered) // chunks
    dealt: list[list[int]] = [[] for _ in range(chunks)]
    sums = [0.0] * chunks
    for i in ordered:
        least = sums.index(min(sums))
        dealt[least].append(i)
        sums[least] = float("inf") if len(dealt[least]) == room else sums[least] + int(words[i])
    return np.array([i for chunk in dealt for i in chunk], dtype=np.int64)


def in_turn(batches: Sequence[Numbers], micro: int, world: int) -> Iterator[Step]:
    """Ranks take consecutive samples of a batch, as Hugging Face's trainer deals them out."""
    for batch in batches:
        yield [[batch[rank * micro : (rank + 1) * micro]] for rank in range(world)]


def at_random(index: Index, micro: int, world: int) -> Iterator[Step]:
    shuffled = np.random.default_rng(0).permutation(index.seen)
    return in_turn([shuffled[i : i + micro * world] for i in range(0, len(shuffled), micro * world)], micro, world)


def padded(order: Schedule, micro: int, world: int, steps: int) -> Iterator[Step]:
    for step in range(steps):
        batch = order.batch(step)
        largest = -(-len(batch) // world)
        mine = [batch[share] for share in shares(order.lengths[batch], world)]
        yield [[share[i : i + micro] for i in range(0, largest, micro)] for share in mine]


def packed(order: Schedule, capacity: int, world: int, steps: int) -> Iterator[Step]:
    for step in range(steps):
        batch = order.batch(step)
        yield [[batch[members] for members in mine] for mine in packed_shares(order.lengths[batch], world, capacity)]


# Waste.


@dataclass
class Tally:
    tokens: float = 0
    slots: float = 0
    fullest: float = 0
    slowest: float = 0
    steps: int = 0
    world: int = 1

    @property
    def waste(self) -> float:
        return 1 - self.tokens / self.slots

    @property
    def imbalance(self) -> float:
        """Mean over the steps of: tokens of the fullest rank over the mean of the ranks."""
        return self.fullest / self.steps

    @property
    def cost(self) -> float:
        return self.slowest * self.world / self.tokens


def slots_of(micro: Numbers, tokens: Numbers, pack: bool) -> int:
    """Positions that a micro-batch computes; an empty one has a token that stands for nothing."""
    if not len(micro):
        return 1
    return int(tokens[micro].sum() if pack else len(micro) * tokens[micro].max())


def tally(plan: Iterator[Step], tokens: Numbers, pack: bool) -> Tally:
    found = Tally()
    for step in plan:
        held = [sum(int(tokens[micro].sum()) for micro in mine) for mine in step]
        slots = [sum(slots_of(micro, tokens, pack) for micro in mine) for mine in step]
        found.world, found.steps = len(step), found.steps + 1
        found.tokens += sum(held)
        found.slots += sum(slots)
        found.fullest += max(held) * len(step) / sum(held)
        found.slowest += max(slots)
    return found


def show_waste(index: Index, args: argparse.Namespace) -> str:
    micro, world = args.micro, args.ranks
    size = micro * world
    rng = np.random.default_rng(0)
    near, far = index.order(size), index.order(size, window=8)
    steps = near.steps_per_epoch
    rows = [
        ("random batches, padded", at_random(index, micro, world), False),
        (
            "LLaVA's group_by_modality_length",
            in_turn(llavas_order(index.seen, index, micro, world, rng), micro, world),
            False,
        ),
        ("vlmix, padded", padded(near, micro, world, steps), False),
        ("vlmix, padded, window 8", padded(far, micro, world, steps), False),
        *((f"vlmix, packed into {size:,}", packed(near, size, world, steps), True) for size in args.pack),
    ]
    cells = []
    for name, plan, pack in rows:
        found = tally(plan, index.tokens, pack)
        cells.append([name, f"{found.waste:.1%}", f"{found.imbalance:.2f}", f"{found.cost:.2f}"])
    text = index.tokens[~index.images]
    line = f"{len(index.seen):,} samples, {index.images.mean():.1%} with an image, "
    line += f"{index.tokens[index.images].mean():.0f} tokens each with an image"
    line += f" and {text.mean():.0f} without" if len(text) else ""
    line += f"; global batch {world} x {micro}"
    return f"{line}\n\n{table(['an epoch', 'waste', 'imbalance', 'cost'], cells)}"


# Steps.


def generate(args: argparse.Namespace) -> Facts:
    """A mixture of the real one's shape: with the whole image batches and text batches that are trained."""

    from vlmix.builders import known_sources
    from vlmix.mixture.build.build import build
    from vlmix.mixture.build.recipe import parse

    clock, rng = Clock(), np.random.default_rng(0)
    size = args.micro * args.ranks
    text = max(round(args.batches * SHAPES["sharegpt"].rows / sum(shape.rows for shape in SHAPES.values())), 1)
    raw = args.work / "raw"
    pictures = photographs(30, rng)
    shown = {name: shape.rows for name, shape in SHAPES.items() if name != "sharegpt"}
    total, image_rows = sum(shown.values()), size * (args.batches - text)
    names = [name for name, count in shown.items() for _ in range(round(image_rows * count / total))]
    names = (names + ["llava_instruct"] * image_rows)[:image_rows] + ["sharegpt"] * (size * text)
    letters = np.array(list("etaoinshrdlcumwfgypb"))
    words = ["".join(rng.choice(letters, length)) for length in rng.integers(2, 9, 600)]
    rows = []
    for number, name in enumerate(names):
        rounds, questions, answers = draw(name, 1, rng)
        row: dict[str, Any] = {"id": f"{number:012d}", "conversations": []}
        if name != "sharegpt":
            row["image"] = f"{_FOLDERS.get(name, 'coco/train2017')}/{number:012d}.jpg"
            path = raw / row["image"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(pictures[number % len(pictures)])
        for i in range(int(rounds[0])):
            image = "<image>\n" if "image" in row and not i else ""
            for role, count in (("human", questions[i]), ("gpt", answers[i])):
                said = _said(words, int(count), SHAPES[name].tokens, rng)
                row["conversations"].append({"from": role, "value": (image if role == "human" else "") + said})
        rows.append(row)
    (raw / "rows.json").write_text(json.dumps(rows))
    recipe = parse({"name": "made-up", "sources": {"llava_json": {"path": "rows.json"}}}, known_sources())
    build(recipe, known_sources(), raw, args.work / "mixture", workers=2)
    return clock.facts(rows=len(rows))


def _said(words: list[str], count: int, tokens: float, rng: np.random.Generator) -> str:
    """`count` words that a tokenizer takes `tokens` pieces each for: what follows a word are pieces of their own."""
    more = rng.poisson(tokens - 1, count).clip(0, 5)
    return " ".join(words[pick] + ",7,7,"[:extra] for pick, extra in zip(rng.integers(0, len(words), count), more))


def measure(args: argparse.Namespace) -> Facts:
    """The tokenizer of a mixture and the lengths of its samples, kept for the others."""
    from transformers import AutoTokenizer

    import vlmix
    from vlmix.train.batches import lengths
    from vlmix.train.images import ImageGeometry
    from vlmix.train.tokens import Encoder, add_image_token, template, train_tokenizer

    clock = Clock()
    opened = vlmix.open(args.mixture)
    if args.tokenizer.isdigit():
        texts = (value for _, many in opened.texts() for values in many for value in values)
        tokenizer = train_tokenizer(texts, int(args.tokenizer))
    else:
        tokenizer = AutoTokenizer.from_pretrained(args.tokenizer, trust_remote_code=False)
    add_image_token(tokenizer)
    tokenizer.save_pretrained(args.work / "tokenizer")
    found = lengths(opened, Encoder(tokenizer, template("vicuna", tokenizer)), ImageGeometry(336, 14), LENGTH)
    index = Index(
        images=np.array(opened.column("image").to_pylist()) != "",
        words=opened.lengths(),
        tokens=found.tokens,
        rows=opened.rows,
        repeat=opened.column("repeat").to_numpy(),
    )
    index.save(args.work / "index.npz")
    return clock.facts(samples=len(opened))


MODELS: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 1},
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
}
CLIP_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
SMALL_EYES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
VOCABULARY = 32_064  # Llama's, with <image>, to a multiple of 64


def recipe_of(args: argparse.Namespace, pack: int, compiled: bool) -> "Recipe":
    from vlmix.train.config import parse

    tiny = args.model == "tiny"
    eyes = SMALL_EYES if tiny else CLIP_L
    return parse(
        {
            "name": "benchmark",
            "model": {
                "lm": {"model_type": "llama", "max_position_embeddings": LENGTH, **MODELS[args.model]},
                "vision_tower": {"model_type": "clip_vision_model", "image_size": 336, "patch_size": 14, **eyes},
                "tokenizer": str(args.work / "tokenizer"),
            },
            "template": "vicuna",
            "trainable": ["connector", "lm"],
            "batch": {
                "global_size": args.micro * args.ranks,
                "micro_size": args.micro,
                "pack_length": pack,
                "max_length": LENGTH,
            },
            "optim": {"lr": 2e-5},
            "precision": "fp32" if tiny else "bf16",
            "activation_checkpointing": not tiny,
            "compile": compiled,
        }
    )


def plan_of(way: str, index: Index, args: argparse.Namespace) -> list[Step]:
    """The first global batches of the mixture in one of the ways; LLaVA's sampler makes its own of the same samples.

    Its mixed batches, 2 of 5,198 in the real mixture, would be one in eight here: they are left out.
    """
    order = index.order(args.micro * args.ranks, window=8 if way == "window" else 1)
    steps = min(args.batches, order.steps_per_epoch)
    if way == "packed":
        return list(packed(order, args.pack[0], args.ranks, steps))
    if way in ("padded", "window"):
        return list(padded(order, args.micro, args.ranks, steps))
    seen = np.concatenate([order.batch(step) for step in range(steps)])
    batches = llavas_order(seen, index, args.micro, args.ranks, np.random.default_rng(0), mixed=False)
    return list(in_turn(batches, args.micro, args.ranks))


class Shares:
    """Item k: the micro-batches of step k, share by share of the ranks that this process runs."""

    def __init__(self, opened: "Mixture", collator: "Collator", plan: list[Step], mine: range, pack: bool) -> None:
        self.opened, self.collator, self.plan, self.mine, self.pack = opened, collator, plan, mine, pack

    def __getitem__(self, step: int) -> "list[list[MicroBatch]]":
        return [
            [self.collator([self.opened[i] for i in micro.tolist()], self.pack) for micro in self.plan[step][rank]]
            for rank in self.mine
        ]


def train(args: argparse.Namespace) -> Facts:
    """All steps of one way; the first is run once more before, untimed."""
    import torch
    from transformers import AutoTokenizer

    import vlmix
    from vlmix.train.batches import Collator
    from vlmix.train.flops import Flops, peak
    from vlmix.train.loader import make_loader
    from vlmix.train.model import TrainableVLM, build
    from vlmix.train.parallel import apply_fsdp, before_backward, init_distributed, reduces_each
    from vlmix.train.param_groups import param_groups
    from vlmix.train.tokens import Encoder, template

    way, _, compiled = args.contender.partition("+")
    pack = args.pack[0] if way == "packed" else 0
    recipe = recipe_of(args, pack, bool(compiled))
    opened, index = vlmix.open(args.mixture), Index.load(args.work / "index.npz")
    plan = plan_of(way, index, args)
    with init_distributed() as me:
        if me.device.type == "cpu":
            torch.set_num_threads(1)
        torch.manual_seed(0)
        parts, tokenizer = build(
            recipe, AutoTokenizer.from_pretrained(args.work / "tokenizer", trust_remote_code=False)
        )
        if args.model != "tiny":
            parts.model.resize_token_embeddings(VOCABULARY, mean_resizing=False)
        model = TrainableVLM(parts, recipe)
        flops = Flops.of(model)
        apply_fsdp(model, recipe, me)
        optimizer = torch.optim.AdamW(list(param_groups(model, recipe)), fused=True)
        names = sorted(set(opened.column("source").to_pylist()))
        encoder = Encoder(tokenizer, template(recipe.template, tokenizer))
        collator = Collator(encoder, parts.vision, recipe.batch, names, tokenizer.pad_token_id or 0)
        data = Shares(opened, collator, plan, range(me.rank, args.ranks, me.world), bool(pack))

        on_cpu, each = me.device.type == "cpu", reduces_each(model, recipe)
        now = time.process_time if on_cpu else time.perf_counter

        def wait() -> None:
            if not on_cpu:
                torch.cuda.synchronize()

        def step(work: "list[list[MicroBatch]]") -> list[float]:
            """One step; the seconds of each share."""
            trained = me.all_reduce_sum([sum(len(micro.targets) for share in work for micro in share)])[0]
            took, left = [], sum(map(len, work))
            for share in work:
                began = now()
                for micro in share:
                    left -= 1
                    before_backward(model, left == 0, each)
                    (model(micro.to(me.device)).sum() * (me.world / max(trained, 1))).backward()
                wait()
                took.append(now() - began)
            torch.nn.utils.clip_grad_norm_(
                [p for p in model.parameters() if p.requires_grad], recipe.optim.max_grad_norm
            )
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            wait()
            return took

        step(data[0])
        batches = iter(make_loader(data, 0, len(plan), 1 if on_cpu else 8))  # type: ignore[arg-type]
        work = next(batches)  # the worker's start is not a step's wait
        clock, waited, slowest, needed = Clock(), 0.0, 0.0, 0.0
        for number in range(len(plan)):
            if number:
                asked = time.perf_counter()
                work = next(batches)
                waited += time.perf_counter() - asked
            slowest += max(step(work))
            needed += sum(flops.of_micro(micro) for share in work for micro in share)
        facts = clock.facts(steps=len(plan), waited=waited, slowest=slowest, world=me.world, on_cpu=on_cpu)
        needed = me.all_reduce_sum([needed])[0]
        found = tally(iter(plan), index.tokens, bool(pack))
        limit = peak(me.device)
        per_gpu = needed / facts["seconds"] / me.world / 1e12
        facts |= {"tokens": found.tokens, "waste": found.waste, "tflops": per_gpu, "mfu": limit and per_gpu / limit}
        facts["memory"] = None if on_cpu else torch.cuda.max_memory_allocated() / 2**30
        agreed: Facts = me.run_on_main(lambda: facts)
        return agreed


LINES = {
    "packed": "vlmix, packed",
    "window": "vlmix, padded, window 8",
    "padded": "vlmix, padded",
    "llava": "LLaVA's sampler, padded",
}


def launch(name: str, args: argparse.Namespace, work: Path, options: Sequence[str]) -> tuple[Facts, int, int | None]:
    if args.nproc == 1:
        return run(name, work, *options)
    init_distributed = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(args.nproc),
    ]
    return execute([*init_distributed, sys.argv[0], "--contender", name, "--work", str(work), *options])


def show_steps(measured: dict[str, Measured]) -> str:
    spent = {name: found.cpu if found.facts["on_cpu"] else found.seconds for name, found in measured.items()}
    rate = {name: found.facts["tokens"] / spent[name] / found.facts["world"] for name, found in measured.items()}
    slow = {name: found.facts["slowest"] / found.facts["steps"] for name, found in measured.items()}
    cells = []
    for name, found in measured.items():
        facts, (way, _, compiled) = found.facts, name.partition("+")
        mfu = "-" if facts["mfu"] is None else f"{facts['mfu']:.1%}"
        cells.append(
            [
                LINES[way] + (", compiled" if compiled else ""),
                f"{found.seconds / facts['steps']:.2f} .. {found.worst / facts['steps']:.2f}",
                f"{found.cpu / facts['steps']:.2f}",
                f"{rate[name]:,.0f}",
                f"{rate[name] / rate['llava']:.2f}x",
                f"{slow[name]:.2f}",
                f"{slow['llava'] / slow[name]:.2f}x",
                f"{facts['waste']:.1%}",
                f"{facts['waited'] / found.seconds:.1%}",
                mfu,
                "-" if facts["memory"] is None else f"{facts['memory']:.1f} GiB",
            ]
        )
    headings = ["steps", "s/step", "cpu", "tokens/s", "speed", "slowest share", "speed", "waste", "data wait", "MFU"]
    return table([*headings, "memory"], cells)


CONTENDERS = {"generate": generate, "measure": measure}


def main() -> None:
    made = parser(__doc__, repeat=2)
    made.add_argument("--mixture", type=Path, help="a mixture folder (default: one is made up)")
    made.add_argument("--only", choices=("waste", "steps"), help="one of the two parts")
    made.add_argument("--ranks", type=int, default=8, help="ranks of a step (default 8)")
    made.add_argument("--micro", type=int, default=16, help="samples of a rank, and of a padded micro-batch (16)")
    made.add_argument(
        "--pack", type=int, nargs="+", default=[4_096, 8_192, 16_384], help="capacities; steps: the first"
    )
    made.add_argument("--batches", type=int, default=16, help="global batches that are trained on (default 16)")
    made.add_argument("--model", choices=MODELS, default="tiny")
    made.add_argument("--tokenizer", help="a folder or name, or the size of one to train (2000; 32000 for --mixture)")
    made.add_argument("--nproc", type=int, default=1, help="GPUs")
    args = made.parse_args()
    if args.contender in LINES or (args.contender or "").endswith("+compile"):
        print(json.dumps(train(args)), flush=True)
        return
    if perform(args, CONTENDERS):
        return
    print(machine("vlmix", "torch", "transformers", "numpy"))
    if args.only != "steps":
        print(f"\nmade up: {show_waste(made_up(args.scale), args)}")
    if args.only == "waste" and args.mixture is None:
        return
    with work_folder(args) as work:
        packs = [str(capacity) for capacity in args.pack]
        options = ["--ranks", str(args.ranks), "--micro", str(args.micro), "--batches", str(args.batches)]
        options += ["--model", args.model, "--pack", *packs]
        if args.mixture is None:
            run("generate", work, *options)
        options += ["--mixture", str(args.mixture or work / "mixture")]
        run("measure", work, "--tokenizer", args.tokenizer or ("32000" if args.mixture else "2000"), *options)
        if args.mixture is not None and args.only != "steps":
            print(f"\n{args.mixture}: {show_waste(Index.load(work / 'index.npz'), args)}")
        if args.only != "waste":
            forms = ("", "+compile") if args.model != "tiny" else ("",)
            names = [way + form for form in forms for way in LINES]
            measured = alternate(names, args.repeat, lambda name: launch(name, args, work, options))
            print(f"\n{show_steps(measured)}")


if __name__ == "__main__":
    main()

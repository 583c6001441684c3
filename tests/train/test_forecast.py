"""What a training will take: against what real runs, real tensors and torch's own profiler say."""

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, CLIPVisionModel, Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from tests.train.nano import NANO, nano
from vlmix.cli.train import train as command
from vlmix.mixture.blend import open_samples
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import open as open_mixture
from vlmix.mixture.schedule.trees import Bin
from vlmix.train import mixtures, validation
from vlmix.train.attention import Bounds
from vlmix.train.batches import Collator, MicroBatch, MicroBatchDataset, lengths, micro_batches
from vlmix.train.config import Recipe, load
from vlmix.train.cross_entropy import chunked_cross_entropy
from vlmix.train.flops import Flops
from vlmix.train.forecast import _Epoch, _Facts, _skeleton, forecast
from vlmix.train.memory import peaks
from vlmix.train.metrics import read
from vlmix.train.model import TrainableVLM, build, describe
from vlmix.train.parallel import Ranks, apply_fsdp, init_distributed
from vlmix.train.param_groups import count_parameters, param_groups
from vlmix.train.run import own_tokenizer, train
from vlmix.train.tokens import Encoder, template

PADDED = {"pack_length": 0, "micro_size": 3}
SHARED = {"pack_length": 1024, "share_images": 4}


@pytest.fixture(scope="module")
def part(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 samples."""
    out = tmp_path_factory.mktemp("part") / "part"
    open_mixture(mixture).subset(total=120).save(out)
    return out


@pytest.fixture(scope="module")
def other(mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 others."""
    out = tmp_path_factory.mktemp("other") / "other"
    open_mixture(mixture).subset(total=50, seed=9).save(out)
    return out


@pytest.mark.parametrize("batch", [PADDED, SHARED], ids=["padded", "pictures shared"])
def test_a_run_over_an_epoch_measures_what_was_forecast(part: Path, tmp_path: Path, batch: dict[str, Any]) -> None:
    recipe = nano(mixture=str(part), out=str(tmp_path / "run"), max_steps=0, batch=batch, log_interval=1000)
    found, alone = forecast(recipe), forecast(nano(mixture=str(part), batch=PADDED))
    assert not (tmp_path / "run").exists()
    train(recipe)
    (row,) = read(tmp_path / "run")
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert row["step"] == found.steps == found.steps_per_epoch == data["steps"]
    assert found.parameters == data["parts"]
    for name in ("samples", "tokens", "image_tokens", "target_tokens"):
        assert getattr(found.step, name) * found.steps == pytest.approx(row[name], rel=1e-12)
    assert alone.step.tokens * alone.steps_per_epoch == pytest.approx(row["tokens_alone"], rel=1e-12)
    assert (row["tokens"] < row["tokens_alone"]) == (batch is SHARED)
    for name, source in row["sources"].items():
        assert found.sources[name].target_tokens * found.steps == pytest.approx(source["tokens"], rel=1e-12)
    assert (row["padding_waste"] > 0) == (batch is PADDED) and row["padding_waste"] == round(found.padding_waste, 4)
    assert row["imbalance"] == round(found.imbalance, 4) == 1
    tokens = sum(source.tokens for source in found.sources.values())
    assert tokens == pytest.approx(found.step.tokens) and found.samples == data["samples"]


def collated(recipe: Recipe, world: int) -> tuple[list[list[list[MicroBatch]]], Flops]:
    """The first epoch as ranks get it, step by step and rank by rank."""
    samples = open_samples(recipe.mixture)
    if recipe.validation:
        samples, _ = validation.split(samples, recipe.validation)
    parts, tokenizer = build(recipe, own_tokenizer(recipe, samples, None))
    encoder = Encoder(tokenizer, template(recipe.template, tokenizer))
    found = lengths(samples, encoder, parts.vision, recipe.batch.max_length)
    order = mixtures.schedule(samples, recipe, found.tokens, world)
    sharing = mixtures.sharing(order, recipe, found)
    collator = Collator(encoder, parts.vision, recipe.batch, sorted(set(samples.column("source").to_pylist())), 0)
    steps = []
    for step in range(order.steps_per_epoch):
        ranks = [MicroBatchDataset(samples, order, collator, rank, world, sharing)[step] for rank in range(world)]
        assert all(isinstance(each, list) for each in ranks)
        steps.append(ranks)
    return steps, Flops.of(TrainableVLM(parts, recipe))  # type: ignore[return-value]


def test_the_micro_batches_that_need_most_are_described_as_they_are(mixture: Path) -> None:
    recipe = nano(mixture=str(mixture), batch={**SHARED, "global_size": 64, "max_length": 200})
    samples = open_samples(recipe.mixture)
    parts, tokenizer = build(recipe, own_tokenizer(recipe, samples, None))
    encoder = Encoder(tokenizer, template(recipe.template, tokenizer))
    facts = _Facts(samples, encoder, parts.vision, recipe, 0)
    order = mixtures.schedule(facts.samples, recipe, facts.lengths.tokens, 2)
    collate = Collator(encoder, parts.vision, recipe.batch, sorted(samples.sources), 0)
    bins = _Epoch(order, facts, 2, recipe).largest
    assert any(max(each.trees) > 2 for each in bins)
    for each in (*bins, Bin(np.empty(0, dtype=np.int64), [])):
        described = _skeleton(each, facts, recipe)
        bare = [nth > 0 for size in each.trees for nth in range(size)]
        there = collate(facts.samples.read(each.positions, bare), True, each.trees)
        for field in dataclasses.fields(MicroBatch):
            one, other = getattr(described, field.name), getattr(there, field.name)
            if field.name == "bounds":
                assert (one.ends, one.before) == (other.ends, other.before)
            elif isinstance(one, torch.Tensor):
                assert (one.shape, one.dtype) == (other.shape, other.dtype), field.name
            elif field.name != "samples" and len(each.positions):
                assert np.array_equal(one, other) if field.name == "lengths" else one == other, field.name


@pytest.mark.parametrize("length", [100, 110, 112])
def test_lengths_that_were_estimated_share_too(part: Path, length: int) -> None:
    batch = {"share_images": 4, "global_size": 2, "pack_length": 1024, "max_length": length}
    found = forecast(nano(mixture=str(part), batch=batch), sample=60)
    assert found.steps_per_epoch > 0 and found.step.tokens > 0


@pytest.mark.parametrize(
    ("world", "changes"),
    [
        (4, {"batch": {"global_size": 16, "pack_length": 1024}, "validation": {"holdout": 0.2}}),
        (2, {"batch": {**PADDED, "length_window": 2}, "model": {"tile_grids": [[1, 2], [2, 1]]}, "several": True}),
        (2, {"batch": {"global_size": 16, "pack_length": 1024, "share_images": 4}}),
    ],
    ids=["packed, held out", "padded, two mixtures, tiles", "pictures shared"],
)
def test_several_ranks_get_what_was_forecast(part: Path, other: Path, world: int, changes: dict[str, Any]) -> None:
    several = changes.pop("several", False)
    recipe = nano(mixture={str(part): 0.7, str(other): 0.3} if several else str(part), **changes)
    found = forecast(recipe, world)
    steps, flops = collated(recipe, world)
    slots = [[sum(micro.input_ids.numel() for micro in micros) for micros in ranks] for ranks in steps]
    every = [micro for ranks in steps for micros in ranks for micro in micros]
    total = sum(map(sum, slots))
    assert found.steps_per_epoch == len(steps)
    assert found.padding_waste == pytest.approx(1 - sum(int(micro.spans[0].sum()) for micro in every) / total)
    assert found.imbalance == pytest.approx(sum(map(max, slots)) * world / total)
    assert found.imbalance > 1
    counts = [len(ranks[0]) for ranks in steps]
    micro_batches = found.micro_batches
    assert (micro_batches.least, micro_batches.most) == (min(counts), max(counts))
    assert micro_batches.mean == pytest.approx(sum(counts) / len(counts))
    assert found.step.tflop * len(steps) == pytest.approx(sum(map(flops.of_micro, every)) / 1e12, rel=1e-9)
    assert found.step.image_tokens * len(steps) == pytest.approx(sum(micro.image_tokens for micro in every))
    if several:
        assert [each["weight"] for each in found.mixtures] == [0.7, 0.3]
        assert {name.split("/")[0] for name in found.sources} == {"part", "other"}


@pytest.fixture()
def eight() -> Iterator[Ranks]:
    """The first of eight processes that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=0, world_size=8, store=FakeStore())
    yield Ranks(0, 8, torch.device("cpu"))
    dist.destroy_process_group()


def local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def nbytes(tensors: Any) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


FROZEN = {"trainable": ["connector", "lm"], "precision": "bf16", "batch": {"pack_length": 16384}}


@pytest.mark.parametrize("changes", [{}, FROZEN], ids=["everything, several micro-batches", "frozen tower, one"])
def test_states_are_as_large_as_those_of_a_step(part: Path, changes: dict[str, Any]) -> None:
    recipe = nano(mixture=str(part), **changes)
    whole = forecast(recipe)
    found = whole.memory
    samples = open_samples(recipe.mixture)
    parts, tokenizer = build(recipe, own_tokenizer(recipe, samples, None))
    encoder = Encoder(tokenizer, template(recipe.template, tokenizer))
    collate = Collator(encoder, parts.vision, recipe.batch, list(samples.sources), 0)
    model = TrainableVLM(parts, recipe)
    with init_distributed() as me:
        apply_fsdp(model, recipe, me)
        optimizer = torch.optim.AdamW(list(param_groups(model, recipe)), fused=True)
        model(collate([samples[0]], True)).sum().backward()
        optimizer.step()
        tower = {*model.vision_tower.parameters()} if changes else set()
        assert found.weights == nbytes(weight for weight in model.parameters() if weight not in tower)
        assert found.frozen_tower == nbytes(tower)
        grads = [weight.grad for weight in model.parameters() if weight.grad is not None]
        assert whole.micro_batches.most == (1 if changes else 3)
        # Of several micro-batches, gradients are kept whole until the last one's are there.
        assert found.gradients == nbytes(grads) * (1 if changes else 2)
        moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
        assert found.optimizer == nbytes(moments)


def test_the_first_of_eight_processes_holds_what_fsdp_gives_it(part: Path, eight: Ranks) -> None:
    recipe = nano(mixture=str(part), model={"lm": {**NANO["model"]["lm"], "intermediate_size": 51}})
    found = forecast(recipe, 8)
    model = TrainableVLM(build(recipe, own_tokenizer(recipe, open_samples(str(part)), None))[0], recipe)
    apply_fsdp(model, recipe, eight)
    assert found.memory.weights == nbytes(model.parameters())
    assert found.memory.optimizer == 2 * nbytes(weight for weight in model.parameters() if weight.requires_grad)
    assert found.memory.weights > 4 * sum(weight.numel() for weight in model.parameters()) / 8, "rows do not divide"


def peak_of(call: Any) -> int:
    """The most bytes that torch's CPU allocator has handed out at a time in a call, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


MIDDLE: dict[str, Any] = {
    "lm": {**NANO["model"]["lm"], "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 4},
    "vision_tower": {**NANO["model"]["vision_tower"], "hidden_size": 64, "intermediate_size": 128, "image_size": 64},
}


@pytest.mark.parametrize("trainable", [["vision_tower", "connector", "lm"], ["connector"]], ids=["all", "connector"])
@pytest.mark.parametrize("recomputed", [False, True], ids=["kept", "recomputed"])
def test_activations_are_those_that_the_profiler_sees(part: Path, trainable: list[str], recomputed: bool) -> None:
    """To 10 %: kernels of the CPU have buffers of their own."""
    recipe = nano(
        mixture=str(part),
        model=MIDDLE,
        trainable=trainable,
        activation_checkpointing=recomputed,
        batch={"pack_length": 0, "micro_size": 8},
    )
    samples = open_samples(str(part))
    tokenizer = own_tokenizer(recipe, samples, None)
    parts, prepared = build(recipe, tokenizer)
    encoder = Encoder(prepared, template(recipe.template, prepared))
    facts = _Facts(samples, encoder, parts.vision, recipe, 0)
    members = facts.image_tokens.nonzero()[0][:8]
    micro = Collator(encoder, parts.vision, recipe.batch, list(samples.sources), 0)(
        [samples[i] for i in members.tolist()], False
    )
    with torch.device("meta"):
        described = TrainableVLM(describe(recipe, tokenizer)[0], recipe)
    activations, logits = peaks(described, recipe, [_skeleton(Bin(members, [1] * len(members)), facts, recipe)])

    model = TrainableVLM(parts, recipe)
    for weight in model.parameters():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(lambda weight: setattr(weight, "grad", None))
    model.target_states(micro).sum().backward()  # what is made once is made
    assert activations == pytest.approx(peak_of(lambda: model.target_states(micro).sum().backward()), rel=0.1)
    head = model.hf.lm_head.weight.detach()
    states = torch.randn(len(micro.targets), 128, requires_grad=True)
    seen = peak_of(lambda: chunked_cross_entropy(states, head, None, micro.targets, recipe.loss_chunk).sum().backward())
    assert logits == pytest.approx(seen, rel=0.1)


def test_keys_that_several_branches_see_are_kept_for_each(mixture: Path) -> None:
    """As `attention._varlen` gathers them, which runs on a GPU alone: the CPU has masks besides."""
    recipe = nano(mixture=str(mixture), model=MIDDLE, batch={**SHARED, "global_size": 32, "pack_length": 1500})
    samples = open_samples(recipe.mixture)
    parts, tokenizer = describe(recipe, own_tokenizer(recipe, samples, None))
    with torch.device("meta"):
        model = TrainableVLM(parts, recipe)
    facts = _Facts(samples, Encoder(tokenizer, template(recipe.template, tokenizer)), parts.vision, recipe, 0)
    order = mixtures.schedule(facts.samples, recipe, facts.lengths.tokens, 1)
    bins = _Epoch(order, facts, 1, recipe).largest

    def seen(members: Bin) -> int:
        return int(sum(spans.sum() for spans in _skeleton(members, facts, recipe).spans))

    sharing = mixtures.sharing(order, recipe, facts.lengths)
    steps = range(order.steps_per_epoch)
    every = [each for step in steps for rank in micro_batches(order, step, 1, recipe.batch, sharing) for each in rank]
    keys = [seen(each) for each in bins]
    assert max(keys) == max(map(seen, every)), "the micro-batch with most keys is among those that are followed"
    micro = _skeleton(bins[int(np.argmax(keys))], facts, recipe)
    more = max(keys) - micro.input_ids.numel()
    assert more > 0.1 * micro.input_ids.numel()
    apart = dataclasses.replace(micro, bounds=Bounds.of(micro.bounds.ends))  # type: ignore[union-attr]
    shared, alone = (peaks(model, recipe, [each])[0] for each in (micro, apart))
    width = 2 * MIDDLE["lm"]["hidden_size"] // 2  # keys and values of two of four heads
    kept = 4 * more * width * MIDDLE["lm"]["num_hidden_layers"]
    assert shared - alone == pytest.approx(kept, rel=0.2)


def test_a_model_is_described_as_it_is_built(part: Path, tmp_path: Path) -> None:
    """From folders of files: the same shapes, the same parts trained, the same weights that are never used."""
    tokenizer = own_tokenizer(nano(), open_samples(str(part)), None)
    lm = {key: value for key, value in NANO["model"]["lm"].items() if key != "model_type"}
    LlamaForCausalLM(LlamaConfig(**lm, vocab_size=len(tokenizer))).save_pretrained(tmp_path / "lm")  # type: ignore[arg-type]
    tokenizer.save_pretrained(tmp_path / "lm")  # type: ignore[union-attr]
    eyes = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "image_size": 28, "patch_size": 14}
    CLIPVisionModel(CLIPVisionConfig(**eyes, intermediate_size=32)).save_pretrained(tmp_path / "clip")
    Dinov2Model(Dinov2Config(**eyes)).save_pretrained(tmp_path / "dino")
    for tower, changes in (("clip", {}), ("dino", {"lora": {"rank": 2, "alpha": 4}})):
        model = {"lm": str(tmp_path / "lm"), "vision_tower": str(tmp_path / tower), "tokenizer": None}
        recipe = nano(model={**model, "vision_feature_layer": -2}, **changes)
        real, real_tokenizer = build(recipe, None)
        described, its_tokenizer = describe(recipe, None)
        assert described.unused == real.unused and real.unused
        assert (described.vision, described.has_cls) == (real.vision, real.has_cls)
        assert len(its_tokenizer) == len(real_tokenizer)
        with torch.device("meta"):
            shapes = TrainableVLM(described, recipe)
        assert {weight.device.type for weight in shapes.parameters()} == {"meta"}
        expected = [
            (name, w.shape, w.dtype, w.requires_grad) for name, w in TrainableVLM(real, recipe).named_parameters()
        ]
        assert [(name, w.shape, w.dtype, w.requires_grad) for name, w in shapes.named_parameters()] == expected


def test_seven_billion_parameters_need_no_memory(part: Path, recipes: Path, tmp_path: Path) -> None:
    """The counts that Vicuna's, CLIP's and LLaVA-1.5's own files have."""
    LlamaConfig(vocab_size=32000, max_position_embeddings=4096).save_pretrained(tmp_path / "lm")
    own_tokenizer(nano(), open_samples(str(part)), None).save_pretrained(tmp_path / "lm")  # type: ignore[union-attr]
    CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    ).save_pretrained(tmp_path / "clip")
    recipe = load(
        recipes / "train/llava-1.5-7b.yaml", [f"model.lm={tmp_path}/lm", f"model.vision_tower={tmp_path}/clip"]
    )
    model = TrainableVLM(describe(recipe, None)[0], recipe)
    assert count_parameters(model) == {
        "lm": {"trained": 6_738_415_616, "frozen": 0},
        "vision_tower": {"trained": 0, "frozen": 303_507_456},
        "connector": {"trained": 20_979_712, "frozen": 0},
    }


@pytest.mark.parametrize("batch", [{}, SHARED], ids=["alone", "pictures shared"])
def test_lengths_of_a_sample_stand_for_all(mixture: Path, batch: dict[str, Any]) -> None:
    recipe = nano(mixture=str(mixture), batch=batch)
    whole, drawn = forecast(recipe, sample=0), forecast(recipe, sample=250)
    assert (whole.tokenized_samples, drawn.tokenized_samples) == (840, 250)
    assert (drawn.samples, drawn.steps_per_epoch) == (whole.samples, whole.steps_per_epoch)
    # Where all texts before a picture are taken to be the same, a few more samples share it.
    assert drawn.step.image_tokens == pytest.approx(whole.step.image_tokens, rel=0.005 if batch else 1e-12)
    assert drawn.step.tokens == pytest.approx(whole.step.tokens, rel=0.01)
    assert drawn.step.target_tokens == pytest.approx(whole.step.target_tokens, rel=0.03)
    assert drawn.step.tflop == pytest.approx(whole.step.tflop, rel=0.01)
    assert drawn.step.tokens != whole.step.tokens


def test_gpus_that_are_not_known_and_numbers_that_are_not_theirs(part: Path) -> None:
    with pytest.raises(VlmixError, match="did you mean 'H100'"):
        forecast(nano(mixture=str(part)), gpu="H10", efficiency=0.3)
    with pytest.raises(VlmixError, match="known for bf16, the recipe computes in fp32"):
        forecast(nano(mixture=str(part)), gpu="H100", efficiency=0.3)
    with pytest.raises(VlmixError, match="global batch 16 cannot be shared evenly by 3 ranks"):
        forecast(nano(mixture=str(part)), 3)


def test_the_command_prints_and_writes_nothing(
    part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "nano.yaml"
    path.write_text(json.dumps({**NANO, "precision": "bf16"}))
    monkeypatch.chdir(tmp_path)
    more = {"dry_run": True, "world": 2, "gpu": "A100", "efficiency": 0.5}
    command(str(path), [f"mixture={part}"], **more, as_json=True)  # type: ignore[arg-type]
    found = json.loads(capsys.readouterr().out)
    assert found["memory"]["total"] == sum(size for name, size in found["memory"].items() if name != "total")
    assert found["time"]["step_seconds"] == pytest.approx(found["step"]["tflop"] / 312 / 0.5 / 2)
    assert found["checkpoint_bytes"] == 12 * sum(each["trained"] for each in found["parameters"].values())
    command(str(path), [f"mixture={part}"], **more)  # type: ignore[arg-type]
    told = capsys.readouterr().out
    for source in found["sources"]:
        assert re.search(rf"^{source} +{found['sources'][source]['samples']:.1f} ", told, re.MULTILINE)
    assert "nano on sample, 2 processes: calculated, not measured" in told
    assert "micro-batches per step and process (gradient accumulation): 1 to 2" in told
    assert "on A100 at 50 % of 312 TFLOP/s" in told
    assert [file.name for file in tmp_path.iterdir()] == ["nano.yaml"]

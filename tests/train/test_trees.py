"""Trees: samples of the same pictures trained on at once learn what they learn apart."""

import json
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.dataset.schema import turns

pytest.importorskip("transformers")

import torch
import yaml
from PIL import Image
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerBase

from tests.helpers import hashes, vlmix
from tests.train.nano import NANO, nano
from tests.train.test_batches import GRIDS, collator, encoder, few, gradients, opened, tokenizer, trainee
from vlmix.builders import known_sources
from vlmix.mixture.blend import blend, open_samples
from vlmix.mixture.build.build import build as build_mixture
from vlmix.mixture.build.recipe import parse as recipe_of
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.schedule.trees import Sharing, trees_of
from vlmix.train import attention, batches, mixtures
from vlmix.train.attention import Bounds, attend
from vlmix.train.batches import Collator, MicroBatchDataset, lengths, prefix_length
from vlmix.train.config import parse
from vlmix.train.flops import Flops
from vlmix.train.metrics import read
from vlmix.train.model import TrainableVLM, build
from vlmix.train.run import own_tokenizer, train
from vlmix.train.tokens import Encoder, template

__all__ = ["encoder", "few", "opened", "tokenizer"]
LM = NANO["model"]["lm"]
SIGLIP = {**NANO["model"]["vision_tower"], "model_type": "siglip_vision_model"}
CASES: dict[str, dict[str, Any]] = {
    "llama, everything": {},
    "frozen tower": {"trainable": ["connector", "lm"]},
    "connector alone": {"trainable": ["connector"]},
    "recomputed": {"activation_checkpointing": True},
    "linear connector": {"model": {"connector": "linear"}},
    "tiles": {"model": {"tile_grids": [list(grid) for grid in GRIDS]}},
    "pixel shuffle, qwen3": {
        "model": {
            "connector": "pixel_shuffle",
            "vision_tower": SIGLIP,
            "image_aspect_ratio": "stretch",
            "lm": {**LM, "model_type": "qwen3", "head_dim": 16},
        }
    },
    "qwen3 with windows": {
        "model": {
            "lm": {
                **LM,
                **{"model_type": "qwen3", "use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1},
            }
        }
    },
    "smollm3": {"model": {"lm": {**LM, "model_type": "smollm3", "no_rope_layer_interval": 2}}},
}
TREES = [3, 1, 2, 2, 1, 2]
PICTURES, SAMPLES = 6, sum(TREES)


def asked(sample: Sample, *texts: str) -> Sample:
    """The sample with other questions and answers; the first one's picture is where it was."""
    first, *rest = texts
    token = "<image>\n" * len(sample.images)
    return msgspec.structs.replace(sample, id=f"{sample.id} {first}", conversations=turns([token + first, *rest]))


def late(sample: Sample, *texts: str) -> Sample:
    """The sample with its picture in the second round, so that an answer is part of what it shares."""
    first, *rest = texts
    said = ["Hello", "Good day to you", "<image>\n" + first, *rest]
    return msgspec.structs.replace(sample, id=f"{sample.id} late {first}", conversations=turns(said))


@pytest.fixture(scope="module")
def samples(few: list[Sample]) -> list[Sample]:
    """In the trees of TREES: three of one picture, the last of two rounds; text alone; two of another picture, the
    first of which is cut off; two of two pictures; one alone; two whose picture comes after an answer."""
    one, other, third, alone, *_ = few
    two = msgspec.structs.replace(third, images=[*third.images, *other.images], jpegs=third.jpegs + other.jpegs)
    return [
        asked(one, "What is it?", "A thing."),
        asked(one, "Where does it stand, and why there?", "On the left, as somebody put it there."),
        asked(one, "Is it red?", "No", "Blue?", "Yes it is"),
        few[-1],
        asked(other, "Tell me all about it.", "It " + "really " * 400 + "is."),
        asked(other, "What color?", "Green"),
        asked(two, "Which is larger?", "The first"),
        asked(two, "Which is older?", "Nobody knows that"),
        alone,
        late(other, "And what is here?", "Grass"),
        late(other, "Who took it?", "Somebody else"),
    ]


def as_sent(samples: list[Sample]) -> list[Sample]:
    """As the loader reads them: the pictures of a tree with its first sample alone."""
    firsts = set(np.cumsum([0, *TREES]).tolist())
    return [
        sample if number in firsts else msgspec.structs.replace(sample, jpegs=())
        for number, sample in enumerate(samples)
    ]


def apart(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a parameter's gradient; one that is zero but for rounding, as that of a bias
    of keys, is compared with a thousandth of the largest."""
    assert found.keys() == expected.keys()
    largest = max(float(grad.norm()) for grad in expected.values())
    return max(
        float((found[name] - grad).norm()) / max(float(grad.norm()), 1e-3 * largest) for name, grad in expected.items()
    )


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_losses_and_gradients_are_those_of_the_samples_one_by_one(
    opened: Mixture,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    samples: list[Sample],
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = trainee(tokenizer, **changes)
    grids = GRIDS if "tile_grids" in changes.get("model", {}) else None
    collate = collator(opened, encoder, grids, max_length=300)
    if "connector" in changes.get("model", {}):
        collate.vision = model.vision
    whole = [collate([sample], True) for sample in samples]
    tree = collate(as_sent(samples), True, TREES)
    tokens = len(tree.targets)
    assert tokens == sum(len(micro.targets) for micro in whole)
    assert tree.lengths.tolist() == [int(micro.lengths[0]) for micro in whole] and tree.lengths[4] == 300
    assert len(tree.image_sizes) == PICTURES < sum(len(micro.image_sizes) for micro in whole)
    assert tree.input_ids.numel() < tree.lengths.sum()
    losses, expected = gradients(model, whole, tokens)
    found_losses, found = gradients(model, [tree], tokens)
    assert np.allclose(found_losses, losses, rtol=1e-5)
    assert apart(found, expected) < 1e-5

    # The same row without its bounds, whose branches see each other.
    assert tree.bounds is not None
    naive = Bounds.of([0, tree.bounds.ends[-1]])
    monkeypatch.setattr(tree, "bounds", naive)
    wrong_losses, wrong = gradients(model, [tree], tokens)
    assert not np.allclose(wrong_losses, losses, rtol=1e-4) and apart(wrong, expected) > 1e-3


def test_a_text_only_rank_and_an_empty_one_run_the_same_passes(
    opened: Mixture, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    model, collate = trainee(tokenizer), collator(opened, encoder)
    text = [sample for sample in samples if not sample.images]
    micros = [collate(text, True, [1] * len(text)), collate([], True, [])]
    losses, found = gradients(model, micros, 10)
    assert len(losses) == len(text) and "hf.model.multi_modal_projector.linear_1.weight" in found


def test_a_branch_costs_what_it_computes_and_sees(
    opened: Mixture, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """b x (t + b / 2) pairs of tokens for a branch of b after a trunk of t; the rest is counted by token."""
    flops = Flops.of(trainee(tokenizer))
    micro = collator(opened, encoder, max_length=300)(as_sent(samples), True, TREES)
    assert micro.bounds is not None
    tokens, pairs = 0, 0.0
    for (start, stop), (first, end) in zip(pairwise(micro.bounds.ends), micro.bounds.before):
        tokens, pairs = tokens + stop - start, pairs + (stop - start) * (end - first + (stop - start) / 2)
    assert tokens == micro.input_ids.numel()
    rest = flops.of_samples(float(tokens), 0.0, float(len(micro.targets)), PICTURES, float(micro.image_tokens))
    assert flops.of_micro(micro) - rest == pytest.approx(3 * 2 * flops.lm_width * 2 * pairs)


def test_another_beginning_is_another_trunk(opened: Mixture, encoder: Encoder, samples: list[Sample]) -> None:
    """Text before the picture is part of what is shared, or not."""
    collate = collator(opened, encoder)
    told = msgspec.structs.replace(samples[7], conversations=turns(["Take <image> and <image>. Which?", "Both"]))
    one, same, other = (collate.encode(sample) for sample in (samples[6], samples[7], told))
    length = prefix_length(one, encoder.image_id)
    assert length == prefix_length(same, encoder.image_id) and (one.ids[:length] == same.ids[:length]).all()
    assert one.ids[length - 1] == encoder.image_id and (one.ids[length:] != encoder.image_id).all()
    assert prefix_length(other, encoder.image_id) > length
    sharing = Sharing(np.zeros(3, np.uint64), np.array([length, length, length + 1]), np.array([7, 7, 8], np.uint64))
    trees = trees_of(np.arange(3), np.array([200, 200, 200]), sharing, 512)
    assert [tree.members.tolist() for tree in trees] == [[0, 1], [2]]


def test_an_lm_that_drops_what_comes_before_a_branch_is_refused(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = attention._by_runs

    def dropped(*given: Any) -> torch.Tensor:
        *states, bounds, window = given
        return runs(*states, Bounds.of(bounds.ends), window)

    monkeypatch.setattr(attention, "_by_runs", dropped)
    with pytest.raises(VlmixError, match="it would let packed samples see each other"):
        build(nano(), tokenizer)


def test_samples_read_with_and_without_pictures_at_once(mixture: Path) -> None:
    opened = open_samples(str(mixture))
    position = int(np.flatnonzero(opened.column("num_images").to_numpy() > 0)[0])
    for samples in (opened, blend({str(mixture): 1.0})):
        whole, bare, again = samples.read([position] * 3, [False, True, False])
        assert whole.jpegs and whole == again and not bare.jpegs
        assert msgspec.structs.replace(bare, jpegs=whole.jpegs) == whole


def test_a_picture_that_does_not_decode_silences_every_branch(
    opened: Mixture, encoder: Encoder, samples: list[Sample]
) -> None:
    first = msgspec.structs.replace(samples[0], jpegs=(b"nothing",))
    micro = collator(opened, encoder)(as_sent([first, *samples[1:]]), True, TREES)
    assert micro.unreadable == [sample.id for sample in [first, *samples[1:3]]]
    assert set(micro.sample_index.tolist()) == set(range(3, SAMPLES))


def test_the_picture_is_drawn_once(
    opened: Mixture, encoder: Encoder, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    decode = batches.decode
    monkeypatch.setattr(batches, "decode", lambda jpeg: (seen.append(jpeg), decode(jpeg))[1])
    collator(opened, encoder)(as_sent(samples), True, TREES)
    assert len(seen) == PICTURES


@pytest.mark.parametrize("form", ["vicuna", "plain"])
def test_a_target_is_foretold_by_the_token_before_it(
    opened: Mixture, tokenizer: PreTrainedTokenizerBase, samples: list[Sample], form: str
) -> None:
    """In `plain` an answer begins right after the trunk, and `late` has one inside."""
    collate = collator(opened, Encoder(tokenizer, template(form, tokenizer)), max_length=300)
    some, trees = (as_sent(samples), TREES) if form == "vicuna" else (samples[4:6], [2])

    def foretold(*micros: Any) -> dict[str, list[tuple[int, int, int]]]:
        found: dict[str, list[tuple[int, int, int]]] = {}
        for micro in micros:
            ids, places = micro.input_ids.flatten(), micro.position_ids.flatten()
            for target, at, owner in zip(micro.targets, micro.target_positions, micro.sample_index):
                said = int(ids[at]), int(places[at]), int(target)
                found.setdefault(micro.samples[owner], []).append(said)
        return found

    tree, alone = (
        collate(some, True, trees),
        [collate([sample], True) for sample in samples if sample.id in {each.id for each in some}],
    )
    assert tree.input_ids.numel() < sum(micro.input_ids.numel() for micro in alone)
    assert foretold(tree) == foretold(*alone)


@pytest.mark.parametrize("window", [None, 3, 100])
@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_of_a_branch_is_causal_from_its_last_token_on(heads: int, window: int | None) -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn((1, 4, 14, 8), generator=generator)
    key, value = (torch.randn((1, heads, 14, 8), generator=generator) for _ in range(2))
    bounds = Bounds.of([0, 5, 8, 12, 14], [(0, 0), (5, 5), (5, 8), (5, 8)])
    out, _ = attend(torch.nn.Module(), query, key, value, None, sliding_window=window, bounds=bounds)
    for (start, stop), trunk in (((0, 5), 0), ((5, 8), 0), ((8, 12), 3), ((12, 14), 3)):
        places = [*range(5, 5 + trunk), *range(start, stop)]
        for nth in range(start, stop):
            seen = places[: len(places) - (stop - nth) + 1][-(window or 100) :]
            k, v = (each[0, :, seen].repeat_interleave(4 // heads, dim=0) for each in (key, value))
            weights = (query[0, :, nth, None] @ k.transpose(1, 2) / 8**0.5).softmax(dim=-1)
            torch.testing.assert_close(out[0, nth], (weights @ v)[:, 0], rtol=1e-5, atol=1e-6)
    if window is None and heads == 4:
        q, k, v = query[:, :, 8:12], *(torch.cat([each[:, :, 5:8], each[:, :, 8:12]], 2) for each in (key, value))
        torch_own = scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(4, 7))
        torch.testing.assert_close(out[:, 8:12], torch_own.transpose(1, 2), rtol=1e-5, atol=1e-6)
        upper_left = scaled_dot_product_attention(q, k, v, is_causal=True)
        assert (out[:, 8:12] - upper_left.transpose(1, 2)).abs().max() > 1e-2, "SDPA's flag is for equal lengths"


def test_what_the_kernel_for_ragged_batches_is_given() -> None:
    """It runs on a GPU alone; these are its arguments."""
    bounds = Bounds.of([0, 5, 8, 12, 14], [(0, 0), (5, 5), (5, 8), (5, 8)])
    kernel = attention.Kernel.of(bounds, torch.device("cpu"))
    assert kernel.queries.tolist() == [0, 5, 8, 12, 14]
    assert kernel.keys.tolist() == [0, 5, 8, 15, 20]
    assert kernel.longest == (5, 7)
    assert kernel.places is not None
    expected = [*range(5), *range(5, 8), *range(5, 8), *range(8, 12), *range(5, 8), *range(12, 14)]
    assert kernel.places.tolist() == expected
    plain = attention.Kernel.of(Bounds.of([0, 5, 14]), torch.device("cpu"))
    assert plain.places is None and plain.keys is plain.queries and plain.longest == (9, 9)


def shared(recipe: Any, world: int = 1) -> Any:
    """(datasets of every rank with trees, the same without trees, the model) of a recipe."""
    samples = open_samples(recipe.mixture)
    parts, prepared = build(recipe, own_tokenizer(recipe, samples, None))
    encoder = Encoder(prepared, template(recipe.template, prepared))
    found = lengths(samples, encoder, parts.vision, recipe.batch.max_length)
    order = mixtures.schedule(samples, recipe, found.tokens, world)
    sharing = mixtures.sharing(order, recipe, found)
    collate = Collator(encoder, parts.vision, recipe.batch, sorted(samples.sources), 0)
    trees, apart = (
        [MicroBatchDataset(samples, order, collate, rank, world, each) for rank in range(world)]
        for each in (sharing, None)
    )
    torch.manual_seed(0)
    return trees, apart, TrainableVLM(parts, recipe), order


@pytest.fixture(scope="module")
def talked_about(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight samples of each of twelve pictures, six of them with a round before the picture, which is equally long but
    another one in two; all come twice."""
    raw, rng, rows = tmp_path_factory.mktemp("talked"), np.random.default_rng(0), []
    plain, one, other = ["<image>\n"], ["A", "so", "<image>\n"], ["B", "so", "<image>\n"]
    openings = [plain, plain, one, other, other, one, one, one]
    for picture in range(12):
        Image.fromarray(rng.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(raw / f"{picture}.jpg")
        for number, (*before, opening) in enumerate(openings):
            said = [*before, f"{opening}What is {number} of {picture}?", "It is " * (number + 1) + "so"]
            turns_ = [{"from": ("human", "gpt")[nth % 2], "value": value} for nth, value in enumerate(said)]
            rows.append({"id": f"{picture}-{number}", "image": f"{picture}.jpg", "conversations": turns_})
    (raw / "rows.json").write_text(json.dumps(rows))
    source = {"path": str(raw / "rows.json"), "repeat": 2}
    build_mixture(
        recipe_of({"name": "talked", "sources": {"llava_json": source}}, known_sources()),
        known_sources(),
        raw,
        raw / "mixture",
    )
    return raw / "mixture"


@pytest.mark.parametrize("name", ["mixture", "talked_about"])
def test_steps_of_a_mixture_give_the_gradients_of_the_same_samples_apart(
    name: str, request: pytest.FixtureRequest
) -> None:
    mixture = request.getfixturevalue(name)
    recipe = nano(mixture=str(mixture), batch={"share_images": 4, "global_size": 32, "pack_length": 1024})
    (trees,), (apart_,), model, _ = shared(recipe)
    (one, other), _, _, _ = shared(recipe, 2)
    fewer = 0
    for step in (0, 3):
        micros, plain = trees[step], apart_[step]
        ids = sorted(name for micro in micros for name in micro.samples)
        assert ids == sorted(name for micro in plain for name in micro.samples)
        assert ids == sorted(name for rank in (one, other) for micro in rank[step] for name in micro.samples)
        for some, sizes in trees.read(step):  # bytes of a picture are read once
            firsts = set(np.cumsum([0, *sizes]).tolist())
            assert all(bool(sample.jpegs) == (nth in firsts) for nth, sample in enumerate(some) if sample.images)
        fewer += sum(len(micro.images) for micro in plain) - sum(len(micro.images) for micro in micros)
        tokens = sum(len(micro.targets) for micro in plain)
        found, expected = (gradients(model, some, tokens) for some in (micros, plain))
        both = gradients(model, [*one[step], *other[step]], tokens)
        names = [[name for micro in some for name in micro.samples] for some in (micros, plain)]
        assert np.allclose(
            [loss for _, loss in sorted(zip(names[0], found[0]))],
            [loss for _, loss in sorted(zip(names[1], expected[0]))],
            rtol=1e-5,
        )
        assert apart(found[1], expected[1]) < 1e-5 and apart(both[1], expected[1]) < 1e-5
    assert fewer > 3, "the miniature sources show pictures in common"


@pytest.mark.slow
def test_a_run_resumes_and_two_ranks_are_one(mixture: Path, tmp_path: Path) -> None:
    changes = {**NANO, "mixture": str(mixture), "checkpoint": {"interval": 2}}
    changes["batch"] = {**NANO["batch"], "share_images": 4}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(changes))

    def stop(event: str, facts: dict[str, Any]) -> None:
        if event == "step" and facts["step"] == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    recipe = parse({**changes, "out": str(tmp_path / "straight")})
    assert train(recipe) == 0
    halted = msgspec.structs.replace(recipe, out=str(tmp_path / "halted"))
    assert [train(halted, stop), train(halted)] == [signal.SIGTERM, 0]
    assert hashes(tmp_path / "halted" / "model") == hashes(tmp_path / "straight" / "model")
    done = vlmix("train", tmp_path / "recipe.yaml", f"out={tmp_path / 'two'}", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    one, two = read(tmp_path / "straight"), read(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)
        assert [a[name] for name in ("samples", "tokens_alone", "target_tokens")] == [
            b[name] for name in ("samples", "tokens_alone", "target_tokens")
        ]
        assert a["tokens"] < a["tokens_alone"] and a["tokens"] <= b["tokens"]
    with pytest.raises(VlmixError, match=r"another recipe: batch.share_images was 4, here it is 1"):
        train(msgspec.structs.replace(recipe, batch=msgspec.structs.replace(recipe.batch, share_images=1)))


def test_a_run_on_a_gpu_tries_its_kernel_first(mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []

    def refuse(device: torch.device) -> None:
        raise VlmixError("it computes another thing")

    monkeypatch.setattr(attention, "has_kernel", lambda device, dtype: bool(asked.append(dtype)) or True)
    monkeypatch.setattr(attention, "check_kernel", refuse)
    recipe = nano(mixture=str(mixture), out=str(tmp_path / "run"), precision="bf16", batch={"share_images": 4})
    with pytest.raises(VlmixError, match="it computes another thing"):
        train(recipe)
    assert asked == [torch.bfloat16]


def test_a_run_of_a_vlmix_that_shared_nothing_goes_on(mixture: Path, tmp_path: Path) -> None:
    recipe = nano(mixture=str(mixture), out=str(tmp_path / "run"), max_steps=3, checkpoint={"interval": 1})

    def stop(event: str, facts: dict[str, Any]) -> None:
        if event == "step" and facts["step"] == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    assert train(recipe, stop) == signal.SIGTERM
    path = max((tmp_path / "run" / "checkpoints").glob("step-*")) / "state.json"
    state = json.loads(path.read_text())
    assert state["identity"].pop("batch.share_images") == "1" and state["counted"].pop("tokens_alone") > 0
    path.write_text(json.dumps(state))
    batch = msgspec.structs.replace(recipe.batch, share_images=4)
    with pytest.raises(VlmixError, match=r"another recipe: batch.share_images was 1, here it is 4"):
        train(msgspec.structs.replace(recipe, batch=batch))
    assert train(recipe) == 0
    total = read(tmp_path / "run")[-1]["total"]
    assert total["tokens_alone"] == total["tokens"] > 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batch": {"share_images": 4, "pack_length": 0}}, "share_images trains packed samples; set batch.pack_length"),
        ({"batch": {"share_images": 0}}, "share_images"),
        ({"batch": {"share_images": 4}, "mixture": {"a": 0.5, "b": 0.5}}, "share_images is for one mixture; merge"),
    ],
)
def test_what_cannot_be_shared_is_told(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(VlmixError, match=said):
        nano(**changes)


@pytest.mark.slow
def test_with_loras_dropout_the_mean_is_the_same(
    opened: Mixture, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, samples: list[Sample]
) -> None:
    """A trunk has one mask for all of its branches, and not one for each: step by step that is another loss."""
    pytest.importorskip("peft")
    model = trainee(tokenizer, trainable=["lm"], lora={"rank": 2, "alpha": 4, "dropout": 0.3})
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    collate = collator(opened, encoder)
    tree = collate(as_sent(samples), True, TREES)
    apart_ = collate(samples, True)
    drawn = torch.zeros(2, 150, len(samples))
    with torch.no_grad():
        for draw in range(drawn.shape[1]):
            torch.manual_seed(draw)
            drawn[:, draw] = torch.stack([model(tree), model(apart_)])
    means, errors = drawn.mean(1), drawn.std(1) / drawn.shape[1] ** 0.5
    assert drawn.std(1).min() > 0
    assert ((means[0] - means[1]).abs() < 5 * errors.square().sum(0).sqrt()).all()

"""The arithmetic of a step, against a count by hand and torch's own counter."""

from pathlib import Path
from typing import Any

import pytest

from vlmix.mixture.dataset.reader import Sample

pytest.importorskip("transformers")

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedTokenizerBase

from tests.train.nano import nano
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.batches import Collator, MicroBatch
from vlmix.train.flops import Flops, peak
from vlmix.train.model import TrainableVLM, build
from vlmix.train.tokens import Encoder, template, train_tokenizer

# A tower that weighs about as much as the LM, so that each part's passes show in the sum.
TOWER = {
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.fixture(scope="module")
def opened(mixture: Path) -> Mixture:
    return open_mixture(mixture)


@pytest.fixture(scope="module")
def tokenizer(opened: Mixture) -> PreTrainedTokenizerBase:
    texts = (turn.value for i in range(60) for turn in opened[i].conversations)
    return train_tokenizer(texts, 400)


@pytest.fixture(scope="module")
def images(opened: Mixture) -> list[Sample]:
    return [sample for sample in opened[:60] if sample.image][:3]


@pytest.fixture(scope="module")
def texts(opened: Mixture) -> list[Sample]:
    return [sample for sample in opened if not sample.image][:2]


def made(opened: Mixture, tokenizer: PreTrainedTokenizerBase, **changes: Any) -> tuple[TrainableVLM, Collator]:
    recipe = nano(**changes)
    torch.manual_seed(0)
    parts, tokenizer = build(recipe, tokenizer)
    sources = sorted(set(opened.column("source").to_pylist()))
    encoder = Encoder(tokenizer, template("vicuna", tokenizer))
    return TrainableVLM(parts, recipe), Collator(encoder, parts.vision, recipe.batch, sources, 0)


def counted(model: TrainableVLM, micro: MicroBatch) -> int:
    """What torch's counter sees in a forward and a backward pass, without the logits that the loss recomputes. It
    counts the whole square of causal attention."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(micro).sum().backward()
    head = model.hf.lm_head
    return int(counter.get_total_flops()) - 2 * len(micro.targets) * head.in_features * head.out_features


def other_halves(flops: Flops, micro: MicroBatch) -> int:
    """The upper triangles: as much as is needed of scores and values, in one pass forward and two backward."""
    return sum(3 * 2 * flops.lm_width * n * n for n in micro.lengths.tolist())


def test_the_count_of_a_small_model_by_hand(
    opened: Mixture, tokenizer: PreTrainedTokenizerBase, images: list[Sample]
) -> None:
    model, collate = made(opened, tokenizer)
    flops = Flops.of(model)
    lm = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)  # q, k and v of two heads, o; gate, up, down
    head = 32 * len(tokenizer)
    tower = 2 * (4 * 16 * 16 + 2 * 16 * 24) + 3 * 8 * 8 * 16
    connector = 16 * 32 + 32 * 32
    assert (flops.lm, flops.head, flops.tower, flops.connector) == (lm, head, tower, connector)
    assert (flops.lm_width, flops.tower_width, flops.tower_tokens) == (2 * 32, 2 * 16, 5)

    micro = collate(images[:2], True)
    a, b = micro.lengths.tolist()
    weights = 2 * lm * (a + b) + 2 * head * len(micro.targets)
    attention = 2 * (2 * 2 * 32) * (a * a + b * b) // 2  # scores and values of two layers, half the square each
    eyes = 2 * (2 * tower * 5 + 2 * (2 * 2 * 16) * 5 * 5)
    assert flops.of_micro(micro) == 3 * (weights + attention + eyes + 2 * connector * 2 * 4)


PARTS: dict[str, list[str]] = {
    "everything": ["vision_tower", "connector", "lm"],
    "tower frozen": ["connector", "lm"],
    "LM frozen": ["vision_tower", "connector"],
    "connector alone": ["connector"],
}


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_a_padded_image_micro_batch_agrees_with_torchs_counter(
    opened: Mixture, tokenizer: PreTrainedTokenizerBase, images: list[Sample], parts: list[str]
) -> None:
    """To 0.5 %: torch's also leaves out the gradients of pixels, and of the features of a frozen tower."""
    model, collate = made(opened, tokenizer, trainable=parts, model={"vision_tower": TOWER})
    flops = Flops.of(model)
    micro = collate([images[0], images[0]], False)
    assert micro.bounds is None and micro.input_ids.numel() == micro.lengths.sum(), "nothing is padded"
    expected = counted(model, micro) - other_halves(flops, micro)
    assert flops.of_micro(micro) == pytest.approx(expected, rel=0.005)
    a_pass_of_the_lm = 2 * flops.lm * float(micro.lengths.sum())
    a_pass_of_the_tower = 2 * flops.tower * flops.tower_tokens * 2
    assert min(a_pass_of_the_lm, a_pass_of_the_tower) > 0.05 * expected, "one pass more or less would show"


@pytest.mark.parametrize("parts", [["connector", "lm"], ["connector"]], ids=["LM trained", "LM frozen"])
def test_the_lm_alone_is_counted_to_the_last_product(
    opened: Mixture, tokenizer: PreTrainedTokenizerBase, texts: list[Sample], parts: list[str]
) -> None:
    model, collate = made(opened, tokenizer, trainable=parts)
    flops = Flops.of(model)
    # Without an image the connector sees one row of zeros, which the step does not need: no gradient before it.
    zeros = 2 * (2 * 16 * 32 + 3 * 32 * 32)
    for micro in (collate(texts[:1], False), collate(texts, True)):
        angles = 2 * 4 * micro.input_ids.numel()  # transformers before 5.23 makes those of the positions by a product
        more = counted(model, micro) - other_halves(flops, micro) - zeros - flops.of_micro(micro)
        assert more in (0, angles)


def test_packed_samples_cost_the_sum_of_each_and_padding_nothing(
    opened: Mixture, tokenizer: PreTrainedTokenizerBase, images: list[Sample], texts: list[Sample]
) -> None:
    model, collate = made(opened, tokenizer, trainable=["connector", "lm"], model={"vision_tower": TOWER})
    flops = Flops.of(model)
    samples = [*images, *texts]
    packed, padded = collate(samples, True), collate(samples, False)
    one_by_one = sum(flops.of_micro(collate([sample], False)) for sample in samples)
    assert flops.of_micro(packed) == flops.of_micro(padded) == pytest.approx(one_by_one, rel=1e-12)
    run = counted(model, packed)
    assert flops.of_micro(packed) == pytest.approx(run - other_halves(flops, packed), rel=0.01)
    assert counted(model, padded) > 1.2 * run, "padding is computed all the same"
    joined = float(packed.lengths.sum()) ** 2
    across = joined - float((packed.lengths.astype(float) ** 2).sum())
    assert across > 0.5 * joined, "one long sample would cost more: the squares of segments are counted one by one"
    assert flops.of_micro(collate([], True)) == 0


def test_tiles_are_counted_by_views(opened: Mixture, tokenizer: PreTrainedTokenizerBase, images: list[Sample]) -> None:
    grids = [[1, 2], [2, 1], [2, 2]]
    model, collate = made(
        opened, tokenizer, trainable=["connector", "lm"], model={"vision_tower": TOWER, "tile_grids": grids}
    )
    flops = Flops.of(model)
    micro = collate(images[:2], True)
    assert len(micro.images) > 4
    expected = counted(model, micro) - other_halves(flops, micro)
    assert flops.of_micro(micro) == pytest.approx(expected, rel=0.01)


def test_adapters_need_no_gradients_of_the_weights_under_them(
    opened: Mixture, tokenizer: PreTrainedTokenizerBase, texts: list[Sample]
) -> None:
    pytest.importorskip("peft")
    parts = ["connector", "lm"]
    model, collate = made(opened, tokenizer, trainable=parts, lora={"rank": 1, "alpha": 2, "dropout": 0})
    flops = Flops.of(model)
    micro = collate(texts, True)
    expected = counted(model, micro) - other_halves(flops, micro)
    assert flops.of_micro(micro) == pytest.approx(expected, rel=0.02)
    full, _ = made(opened, tokenizer, trainable=parts)
    assert flops.of_micro(micro) < 0.85 * Flops.of(full).of_micro(micro)


def test_a_cpu_has_no_known_peak() -> None:
    assert peak(torch.device("cpu")) is None

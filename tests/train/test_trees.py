"""Trees: samples of the same pictures trained on at once learn what they learn apart."""

from typing import Any

import msgspec
import numpy as np
import pytest

from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.dataset.schema import turns

pytest.importorskip("transformers")

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedTokenizerBase

from tests.train.nano import NANO
from tests.train.test_batches import GRIDS, collator, encoder, few, opened, tokenizer, trainee
from vlmix.mixture.mixture import Mixture
from vlmix.train import attention, batches
from vlmix.train.attention import Bounds, attend
from vlmix.train.batches import MicroBatch
from vlmix.train.tokens import Encoder

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
TREES = [3, 1, 2, 2, 1]


def asked(sample: Sample, *texts: str) -> Sample:
    """The sample with other questions and answers; the first one's picture is where it was."""
    first, *rest = texts
    token = "<image>\n" * len(sample.images)
    return msgspec.structs.replace(sample, id=f"{sample.id} {first}", conversations=turns([token + first, *rest]))


@pytest.fixture(scope="module")
def samples(few: list[Sample]) -> list[Sample]:
    """In the trees of TREES: three of one picture, the last of two rounds; text alone; two of another picture, the
    first of which is cut off; two of two pictures; one alone."""
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
    ]


def as_sent(samples: list[Sample]) -> list[Sample]:
    """As the loader reads them: the pictures of a tree with its first sample alone."""
    firsts = set(np.cumsum([0, *TREES]).tolist())
    return [
        sample if number in firsts else msgspec.structs.replace(sample, jpegs=())
        for number, sample in enumerate(samples)
    ]


def gradients(model: Any, micros: list[MicroBatch], tokens: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    model.zero_grad()
    losses: list[float] = []
    for micro in micros:
        loss = model(micro)
        (loss.sum() / tokens).backward()
        losses += loss.tolist()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses, found


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
    assert len(tree.image_sizes) == 5 < sum(len(micro.image_sizes) for micro in whole)
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


def test_a_picture_that_does_not_decode_silences_every_branch(
    opened: Mixture, encoder: Encoder, samples: list[Sample]
) -> None:
    first = msgspec.structs.replace(samples[0], jpegs=(b"nothing",))
    micro = collator(opened, encoder)(as_sent([first, *samples[1:]]), True, TREES)
    assert micro.unreadable == [sample.id for sample in [first, *samples[1:3]]]
    assert set(micro.sample_index.tolist()) == set(range(3, 9))


def test_the_picture_is_drawn_once(
    opened: Mixture, encoder: Encoder, samples: list[Sample], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bytes] = []
    decode = batches.decode
    monkeypatch.setattr(batches, "decode", lambda jpeg: (seen.append(jpeg), decode(jpeg))[1])
    collator(opened, encoder)(as_sent(samples), True, TREES)
    assert len(seen) == 5


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

"""Micro-batches: what they hold, and that packing changes nothing that is learnt."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from vlmix.mixture.dataset.reader import Sample

pytest.importorskip("transformers")

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from tests.train.nano import NANO, nano
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.train.batches import Collator, MicroBatch, MicroBatchDataset, lengths
from vlmix.train.config import Batch
from vlmix.train.images import ImageGeometry, normalise
from vlmix.train.loader import make_loader
from vlmix.train.model import TrainableVLM, build
from vlmix.train.tokens import Encoder, template, train_tokenizer

SIDE, PATCH = 16, 8
GRIDS = ((1, 3), (2, 1))
EDGY = {**NANO["model"]["lm"], "initializer_range": 0.3}  # weights that make a leak between samples show
BOMB = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\xff\xff\0\0\xff\xff\x08\x02\0\0\0" + b"\0" * 8


@pytest.fixture(scope="module")
def opened(mixture: Path) -> Mixture:
    return open_mixture(mixture)


@pytest.fixture(scope="module")
def tokenizer(opened: Mixture) -> PreTrainedTokenizerBase:
    tokenizer = train_tokenizer((value for _, many in opened.texts() for values in many for value in values), 400)
    build(nano(), tokenizer)  # which makes <image> a token of it
    return tokenizer


@pytest.fixture(scope="module")
def encoder(tokenizer: PreTrainedTokenizerBase) -> Encoder:
    return Encoder(tokenizer, template("vicuna", tokenizer))


@pytest.fixture(scope="module")
def few(opened: Mixture) -> list[Sample]:
    """Image samples of several sizes and lengths, and two of text, the longest last."""
    images = [sample for sample in opened if sample.image]
    texts = [sample for sample in opened if not sample.image]
    assert len({(sample.width, sample.height) for sample in images[:8]}) > 1
    return images[:8] + texts[:2]


def collator(opened: Mixture, encoder: Encoder, grids: Any = None, **batch: Any) -> Collator:
    sources = sorted(set(opened.column("source").to_pylist()))
    settings = Batch(**{"global_size": 16, "max_length": 512, **batch})
    return Collator(encoder, ImageGeometry(SIDE, PATCH, tile_grids=grids), settings, sources, 0)


def trainee(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> TrainableVLM:
    recipe = nano(**changes)
    torch.manual_seed(0)
    parts, _ = build(recipe, tokenizer)
    for parameter in parts.model.parameters():  # biases that are zero would hide a part that is not reached
        parameter.data += 0.02 * torch.randn_like(parameter)
    return TrainableVLM(parts, recipe)


def gradients(
    model: TrainableVLM, micros: list[MicroBatch], tokens: int
) -> tuple[list[float], dict[str, torch.Tensor]]:
    """The losses of samples, and the gradients of their sum over so many target tokens."""
    model.zero_grad()
    losses: list[float] = []
    for micro in micros:
        loss = model(micro)
        (loss.sum() / tokens).backward()
        losses += loss.tolist()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return losses, found


def rows(micro: MicroBatch) -> list[torch.Tensor]:
    """The ids of each sample."""
    if micro.bounds is None:
        return [row[:length] for row, length in zip(micro.input_ids, micro.lengths.tolist())]
    return [micro.input_ids[0, a:b] for a, b in pairwise(micro.bounds.ends)][: len(micro.samples)]


@pytest.mark.parametrize("grids", [None, GRIDS])
@settings(max_examples=25)
@given(picked=st.lists(st.integers(0, 9), max_size=6))
def test_packed_and_padded_hold_the_same(
    opened: Mixture, encoder: Encoder, few: list[Sample], grids: Any, picked: list[int]
) -> None:
    collate = collator(opened, encoder, grids, max_length=200)
    samples = [few[i] for i in picked]
    packed, padded = collate(samples, True), collate(samples, False)
    for name in ("targets", "sample_index", "images", "sources"):
        assert torch.equal(getattr(packed, name), getattr(padded, name)), name
    for name in ("samples", "image_sizes", "tiles_per_image", "image_tokens"):
        assert getattr(packed, name) == getattr(padded, name), name
    assert packed.samples == [sample.id for sample in samples]
    assert len(packed.images) == sum(packed.tiles_per_image)
    assert np.array_equal(packed.lengths, padded.lengths)
    assert packed.input_ids.shape == (1, max(int(packed.lengths.sum()), 1))
    assert padded.input_ids.shape == (max(len(samples), 1), max([1, *packed.lengths]))
    for sample, one, other in zip(samples, rows(packed), rows(padded)):
        assert one.tolist() == other.tolist() == collate.encode(sample).ids.tolist()
    for row, length in zip(padded.input_ids, padded.lengths.tolist()):
        assert not row[length:].any(), "padding is the padding token"
    for micro in (packed, padded):
        flat, positions = micro.input_ids.flatten(), micro.position_ids.flatten()
        assert torch.equal(flat[micro.target_positions + 1], micro.targets), "each target follows its site"
        assert (positions[micro.target_positions + 1] == positions[micro.target_positions] + 1).all(), (
            "in the same sample"
        )
        assert micro.image_positions.tolist() == np.flatnonzero(flat.numpy() == encoder.image_id).tolist()
        assert micro.image_tokens == sum((collate.encode(sample).ids == encoder.image_id).sum() for sample in samples)
        cut = [collate.encode(sample).loss_mask[1:].sum() for sample in samples]
        assert np.bincount(micro.sample_index, minlength=len(samples)).tolist() == cut


def test_a_sample_is_cut_at_the_right_and_never_through_its_image(
    opened: Mixture, encoder: Encoder, few: list[Sample]
) -> None:
    longest = max((sample for sample in few if sample.image), key=lambda sample: len(sample.conversations))
    whole = collator(opened, encoder).encode(longest)
    image_ends = int(np.flatnonzero(whole.ids == encoder.image_id)[-1]) + 1
    for length in (len(whole.ids), len(whole.ids) - 1, image_ends):
        cut = collator(opened, encoder, max_length=length).encode(longest)
        assert cut.ids.tolist() == whole.ids[:length].tolist()
        assert cut.loss_mask.tolist() == whole.loss_mask[:length].tolist()
    nothing = collator(opened, encoder, max_length=image_ends)([longest], True)
    assert len(nothing.targets) == 0 and nothing.lengths.tolist() == [image_ends]
    with pytest.raises(
        VlmixError, match=rf"{longest.id}: batch.max_length {image_ends - 1} cuts through its image of 4"
    ):
        collator(opened, encoder, max_length=image_ends - 1)([longest], True)


@pytest.mark.parametrize("grids", [None, GRIDS])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("damage", ["truncated", "zeros", "text", "bomb"])
def test_an_image_that_does_not_decode_shows_nothing_and_trains_on_nothing(
    opened: Mixture, encoder: Encoder, few: list[Sample], damage: str, packed: bool, grids: Any
) -> None:
    first, last = few[0], few[9]
    bad = next(sample for sample in few[1:8] if sample.width != sample.height)
    assert bad.jpeg is not None
    bytes_ = {"truncated": bad.jpeg[: len(bad.jpeg) // 2], "zeros": b"\0" * 99, "text": b"<html>", "bomb": BOMB}
    damaged = msgspec.structs.replace(bad, jpegs=(bytes_[damage],))
    collate = collator(opened, encoder, grids)
    micro, fine = collate([first, damaged, last], packed), collate([first, bad, last], packed)
    assert micro.unreadable == [bad.id] and fine.unreadable == []
    assert (
        torch.equal(micro.input_ids, fine.input_ids)
        and micro.tiles_per_image == fine.tiles_per_image
        and micro.image_tokens == fine.image_tokens
    )
    assert set(fine.sample_index.tolist()) == {0, 1, 2} and set(micro.sample_index.tolist()) == {0, 2}
    assert torch.equal(micro.targets, fine.targets[fine.sample_index != 1])
    own = micro.tiles_per_image[0]
    assert torch.equal(micro.images[:own], fine.images[:own]) and not micro.images[own:].any()
    assert micro.samples == fine.samples and np.array_equal(micro.lengths, fine.lengths)


def test_an_image_of_another_size_than_the_index_says_is_unreadable_where_its_tokens_depend_on_it(
    opened: Mixture, encoder: Encoder, few: list[Sample]
) -> None:
    wide = msgspec.structs.replace(few[0].images[0], width=few[0].height * 3)
    sample = msgspec.structs.replace(few[0], width=wide.width, images=[wide])
    assert collator(opened, encoder)([sample], True).unreadable == []
    micro = collator(opened, encoder, GRIDS)([sample], True)
    assert micro.unreadable == [sample.id]
    assert micro.image_tokens == ImageGeometry(SIDE, PATCH, tile_grids=GRIDS).tokens(sample.width, sample.height)


def renamed(sample: Sample, *values: str) -> Sample:
    roles = sample.conversations
    turns = [msgspec.structs.replace(roles[i % 2], value=value) for i, value in enumerate(values)]
    return msgspec.structs.replace(sample, conversations=turns)


@pytest.mark.parametrize(
    "values",
    [
        ("What is it?", "A cat"),
        ("<image>\nWhat is it?", "A cat", "<image>\nAnd it?", "A dog"),
        ("<image>\n<image>\nWhat is it?", "A cat"),
        ("Hello", "Hello", "What is it?\n<image>", "A cat"),
        ("<image>\nWhat does it say?", "<image>"),
    ],
)
def test_however_often_a_row_names_its_image_its_neighbours_see_their_own(
    opened: Mixture,
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    few: list[Sample],
    values: tuple[str, ...],
) -> None:
    model, collate = trainee(tokenizer, model={"lm": EDGY}), collator(opened, encoder)
    alone = model(collate([few[1]], True))
    try:
        micro = collate([renamed(few[0], *values), few[1]], True)
    except VlmixError as error:  # to refuse the row, and say which, is as good
        assert few[0].id in str(error)
        return
    torch.testing.assert_close(model(micro)[1:], alone, rtol=1e-5, atol=1e-5)


def micros_of(data: MicroBatchDataset, step: int) -> list[MicroBatch]:
    found = data[step]
    assert isinstance(found, list)
    return found


@pytest.mark.parametrize("batch", [{"pack_length": 1024}, {"micro_size": 5}])
def test_all_ranks_have_equally_many_micro_batches_which_hold_each_sample_of_the_step_once(
    opened: Mixture, encoder: Encoder, batch: dict[str, int]
) -> None:
    part = opened.subset(sources={"sharegpt": 7, "vqav2": 40, "refcoco": 30}, where="source != 'gqa'").subset(
        where="source == 'sharegpt' or source == 'vqav2' or source == 'refcoco'"
    )
    assert len(part) == 77
    found = lengths(part, encoder, ImageGeometry(SIDE, PATCH), 512)
    order = part.schedule(32, lengths=found.tokens)
    collate = collator(part, encoder, global_size=32, **batch)
    names, empty = part.column("id").to_pylist(), 0
    assert order.steps_per_epoch == 4, "two whole ones of images, 6 images, 7 texts"
    for world in (1, 2, 4, 8):
        ranks = [MicroBatchDataset(part, order, collate, rank, world) for rank in range(world)]
        for step in range(order.steps_per_epoch):
            micros = [micros_of(rank, step) for rank in ranks]
            assert len({len(mine) for mine in micros}) == 1
            seen = [name for mine in micros for micro in mine for name in micro.samples]
            assert sorted(seen) == sorted(names[i] for i in order.batch(step))
            for micro in (micro for mine in micros for micro in mine):
                assert len(micro.samples) <= batch.get("micro", 32)
                assert "pack" not in batch or micro.input_ids.numel() <= batch["pack"]
                if not micro.samples:
                    empty += 1
                    assert micro.input_ids.shape == (1, 1) and len(micro.targets) == 0 and len(micro.images) == 0
    assert empty, "eight ranks share seven texts"


def test_an_error_in_a_step_comes_out_of_a_worker_as_it_is(opened: Mixture, encoder: Encoder) -> None:
    order = opened.schedule(16)
    data = MicroBatchDataset(opened, order, collator(opened, encoder, max_length=20), 0, 1)
    step = int(np.argmax(order.epoch(0).images))
    error = next(iter(make_loader(data, step, step + 1, workers=1)))
    assert isinstance(error, VlmixError) and "cuts through its image" in str(error)


@pytest.mark.parametrize("grids", [None, GRIDS])
def test_lengths_are_those_of_the_micro_batches(opened: Mixture, encoder: Encoder, tmp_path: Path, grids: Any) -> None:
    view = opened.subset(ratio=0.2, where="source != 'aokvqa'")
    view.save(tmp_path / "view")
    parts = [opened, open_mixture(tmp_path / "view"), view.select(np.arange(len(view))[::-3])]
    limit = 200
    for part in parts:
        found = lengths(part, encoder, ImageGeometry(SIDE, PATCH, tile_grids=grids), limit)
        collate = collator(part, encoder, grids, max_length=limit)
        assert len(found.tokens) == len(part)
        for position in range(0, len(part), 3):
            encoded = collate.encode(part[position])
            assert found.tokens[position] == len(encoded.ids), part[position].id
            assert found.targets[position] == encoded.loss_mask[1:].sum()
        whole = lengths(part, encoder, ImageGeometry(SIDE, PATCH, tile_grids=grids), 100_000)
        assert np.array_equal(found.untruncated, whole.tokens) and np.array_equal(
            found.tokens, whole.tokens.clip(max=limit)
        )
        assert (found.tokens < found.untruncated).any() and (found.tokens == found.untruncated).any()
        micro = collate([part[i] for i in range(9)], True)
        assert micro.lengths.tolist() == found.tokens[:9].tolist()
        assert len(micro.targets) == found.targets[:9].sum()
        assert micro.input_ids.numel() == found.tokens[:9].sum()


def logits(model: TrainableVLM, micro: MicroBatch) -> torch.Tensor:
    """[K, vocabulary]: what the trainer's own pass predicts for each target."""
    with torch.no_grad():
        found: torch.Tensor = model.hf.lm_head(model.target_states(micro))
    return found


HEADS = {"the same": 4, "two for four": 2, "one for four": 1}


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_packed_samples_do_not_see_each_other_as_they_do_in_transformers_default_call(
    opened: Mixture, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, few: list[Sample], heads: int
) -> None:
    model = trainee(tokenizer, model={"lm": {**EDGY, "num_key_value_heads": heads}}).eval()
    collate = collator(opened, encoder)
    packed = collate(few, True)
    alone = torch.cat([logits(model, collate([sample], False)) for sample in few])
    assert alone.abs().max() > 1
    for micro in (packed, collate(few, False)):
        torch.testing.assert_close(logits(model, micro), alone, rtol=1e-5, atol=1e-5)

    given: dict[str, Any] = {"input_ids": packed.input_ids, "position_ids": packed.position_ids}
    given["pixel_values"] = normalise(packed.images)
    with torch.no_grad():
        bounds = {"bounds": packed.bounds}
        ours = {
            "a cache": model.hf(**given, **bounds),
            "a mask": model.hf(**given, **bounds, attention_mask=torch.ones_like(packed.input_ids), use_cache=False),
        }
        model.hf.model.language_model.set_attn_implementation("sdpa")
        naive = model.hf(**given).logits[0, packed.target_positions]
    for what, found in ours.items():
        torch.testing.assert_close(found.logits[0, packed.target_positions], alone, rtol=1e-5, atol=1e-5, msg=what)
    first = packed.sample_index == 0
    assert (naive - alone)[first].abs().max() < 1e-5, "the first sample has nobody before it"
    assert (naive - alone)[~first].abs().max() > 1e-2, "transformers no longer leaks: the attention may go"


CASES: dict[str, dict[str, Any]] = {
    "everything": {},
    "frozen tower": {"trainable": ["connector", "lm"]},
    "connector alone": {"trainable": ["connector"]},
    "recomputed": {"activation_checkpointing": True},
    "tiles": {"model": {"tile_grids": [list(grid) for grid in GRIDS]}},
}


@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_gradients_packed_are_those_of_the_samples_one_by_one(
    opened: Mixture, encoder: Encoder, tokenizer: PreTrainedTokenizerBase, few: list[Sample], changes: dict[str, Any]
) -> None:
    model = trainee(tokenizer, **changes)
    collate = collator(opened, encoder, GRIDS if "model" in changes else None)
    tokens = len(collate(few, True).targets)
    losses, expected = gradients(model, [collate([sample], False) for sample in few], tokens)
    ways = {
        "packed": [collate(few, True)],
        "padded": [collate(few, False)],
        "in two bins and an empty one": [collate(few[:7], True), collate([], True), collate(few[7:], True)],
    }
    for way, micros in ways.items():
        found_losses, found = gradients(model, micros, tokens)
        assert np.allclose(found_losses, losses, rtol=1e-5), way
        assert found.keys() == expected.keys()
        for name, grad in expected.items():
            close = 1e-5 * max(float(grad.abs().max()), 1e-2)
            assert (found[name] - grad).abs().max() <= close, (way, name)

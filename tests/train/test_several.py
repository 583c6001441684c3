"""Samples of none to five images in one mixture: batches, runs, exports, against transformers' own forward pass."""

import io
import json
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("transformers")

import torch
import yaml
from PIL import Image

from tests.helpers import hashes, vlmix
from tests.train.nano import NANO, nano
from tests.train.test_export import CASES, Made, make, trained_logits
from tests.train.test_run import losses, rows
from tests.train.test_tokens import CHATML, byte_level
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.dataset.schema import turns
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.mixture import open as open_mixture
from vlmix.torch import ImageCollator, ProcessorCollator, messages
from vlmix.train.batches import Collator, lengths
from vlmix.train.images import decode, normalise
from vlmix.train.metrics import read
from vlmix.train.run import SKIPPED, train
from vlmix.train.tokens import adds_begin

TILES = {"squares": "clip", "tiles": "next"}


@pytest.fixture(scope="module")
def opened(several: Path) -> Mixture:
    return open_mixture(several)


@pytest.fixture(scope="module")
def by_count(opened: Mixture) -> list[list[Sample]]:
    """The samples with none, one, … five images."""
    found: list[list[Sample]] = [[] for _ in range(6)]
    for sample in opened:
        found[len(sample.images)].append(sample)
    assert all(len(samples) == 11 for samples in found)
    return found


@pytest.fixture(scope="module", params=TILES.values(), ids=TILES)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model and its export, with one square for each image, or with tiles."""
    made = make(tmp_path_factory.mktemp("made"), nano(**CASES[request.param]))
    made.write()
    return made


def collator(made: Made, **batch: Any) -> Collator:
    settings = msgspec.structs.replace(made.recipe.batch, max_length=1000, **batch)
    return Collator(made.encoder, made.parts.vision, settings, ["llava_json"], 0)


def test_a_micro_batch_holds_all_images_in_order(made: Made, by_count: list[list[Sample]]) -> None:
    vision, samples = made.parts.vision, [by_count[n][n] for n in (2, 0, 5, 1, 4)]
    for packed in (True, False):
        micro = collator(made)(samples, packed)
        jpegs = [jpeg for sample in samples for jpeg in sample.jpegs]
        assert len(jpegs) == 12 == len(micro.tiles_per_image)
        views = [vision.tiles(decode(jpeg)) for jpeg in jpegs]
        assert torch.equal(micro.images, torch.cat(views)) and micro.tiles_per_image == list(map(len, views))
        sizes = [(size.height, size.width) for sample in samples for size in sample.images]
        assert micro.image_sizes == sizes == [tuple(decode(jpeg).shape[1:]) for jpeg in jpegs]
        assert micro.image_tokens == sum(vision.tokens(width, height) for height, width in sizes)
        assert int((micro.input_ids == made.encoder.image_id).sum()) == micro.image_tokens
        assert not (micro.targets == made.encoder.image_id).any()


def test_one_image_that_does_not_decode_is_blank_and_its_sample_trains_on_nothing(
    made: Made, by_count: list[list[Sample]]
) -> None:
    bad, good = by_count[3][0], by_count[2][0]
    damaged = msgspec.structs.replace(bad, jpegs=(bad.jpegs[0], b"\xff\xd8 no image", bad.jpegs[2]))
    micro, fine = collator(made)([damaged, good], True), collator(made)([bad, good], True)
    assert micro.unreadable == [bad.id] and torch.equal(micro.input_ids, fine.input_ids)
    assert set(micro.sample_index.tolist()) == {1} and set(fine.sample_index.tolist()) == {0, 1}
    assert micro.tiles_per_image == fine.tiles_per_image
    views = zip(micro.images.split(micro.tiles_per_image), fine.images.split(fine.tiles_per_image))
    same = [torch.equal(one, other) for one, other in views]
    assert same == [True, False, True, True, True]
    assert not micro.images.split(micro.tiles_per_image)[1].any()
    with pytest.raises(VlmixError, match=f"{bad.id}: 3 images, 2 in the index"):
        collator(made)([msgspec.structs.replace(bad, jpegs=bad.jpegs[:2])], True)


def test_lengths_count_each_image_and_tell_what_does_not_fit(made: Made, opened: Mixture) -> None:
    wholes = [collator(made).encode(sample) for sample in opened]
    limit = int(np.median([len(whole.ids) for whole in wholes]))
    found = lengths(opened, made.encoder, made.parts.vision, limit)
    for position, (sample, whole) in enumerate(zip(opened, wholes)):
        images = np.flatnonzero(whole.ids == made.encoder.image_id)
        sizes = [(size.width, size.height) for size in sample.images]
        assert len(images) == sum(made.parts.vision.tokens(*size) for size in sizes)
        assert found.untruncated[position] == len(whole.ids) and found.tokens[position] == min(len(whole.ids), limit)
        assert found.targets[position] == whole.loss_mask[1:limit].sum()
        assert found.fits[position] == (not len(images) or images[-1] < limit)
    assert 0 < found.fits.sum() < len(opened)
    assert (found.fits & (found.untruncated > limit)).any(), "texts are cut, images are not"


@pytest.mark.parametrize("changes", [{}, {"trainable": ["connector", "lm"]}, {"trainable": ["connector"]}], ids=str)
def test_gradients_packed_and_padded_are_those_of_the_samples_one_by_one(
    made: Made, by_count: list[list[Sample]], changes: dict[str, Any], tmp_path: Path
) -> None:
    recipe = nano(**{**(CASES["next"] if made.parts.vision.tile_grids else {}), **changes})
    model = make(tmp_path, recipe, made.tokenizer).trainee
    collate, samples = collator(made), [by_count[n][1] for n in (1, 5, 2, 0, 3, 4)]

    def gradients(micros: list[Any]) -> tuple[list[float], dict[str, torch.Tensor]]:
        model.zero_grad()
        found: list[float] = []
        for micro in micros:
            loss = model(micro)
            loss.sum().backward()
            found += loss.tolist()
        return found, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    expected, grads = gradients([collate([sample], True) for sample in samples])
    for micros in ([collate(samples, True)], [collate(samples[:4], False), collate(samples[4:], True)]):
        losses_, again = gradients(micros)
        assert np.allclose(losses_, expected, rtol=1e-5)
        assert again.keys() == grads.keys()
        for name, grad in grads.items():
            assert (again[name] - grad).abs().max() <= 1e-5 * max(float(grad.abs().max()), 1e-1), name


def picture(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg))


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_transformers_own_forward_pass_on_the_processors_inputs_agrees(
    made: Made, by_count: list[list[Sample]], count: int
) -> None:
    """Logits and loss of LlavaForConditionalGeneration and LlavaNext's on what the exported processor makes."""
    model, processor, vision = made.read(), made.processor(), made.parts.vision
    for sample in by_count[count][:3]:
        micro = collator(made)([sample], True)
        ours = trained_logits(made, micro)
        text = processor.apply_chat_template(messages(sample))
        inputs = processor(text=text, images=[picture(jpeg) for jpeg in sample.jpegs], return_tensors="pt")
        assert inputs["input_ids"].tolist() == micro.input_ids.tolist()
        views = [normalise(tiles, vision.mean, vision.std) for tiles in micro.images.split(micro.tiles_per_image)]
        if vision.tile_grids:
            assert inputs["image_sizes"].tolist() == [list(size) for size in micro.image_sizes]
            pixels = torch.zeros_like(inputs["pixel_values"])
            for row, tiles in zip(pixels, views):
                row[: len(tiles)] = tiles
        else:
            pixels = torch.cat(views)
        assert pixels.shape == inputs["pixel_values"].shape
        labels = torch.full_like(micro.input_ids, -100)
        labels[0, micro.target_positions + 1] = micro.targets
        for seen, tolerance in ((pixels, 1e-5), (inputs["pixel_values"], 5e-3)):
            with torch.no_grad():
                theirs = model(**{**inputs, "pixel_values": seen}, labels=labels)
                loss = made.trainee(micro).sum() / len(micro.targets)
            assert torch.allclose(theirs.logits[0, micro.target_positions], ours, rtol=0, atol=tolerance)
            assert float(theirs.loss) == pytest.approx(float(loss), abs=tolerance)
        # Another order of the same images is another thing.
        if not vision.tile_grids:
            with torch.no_grad():
                other = model(**{**inputs, "pixel_values": pixels.flip(0)}).logits[0, micro.target_positions]
            assert (other - ours).abs().max() > 1e-4


def test_a_question_about_two_images_is_answered_as_it_was_trained(made: Made, by_count: list[list[Sample]]) -> None:
    model, processor = made.read(), made.processor()
    processor.tokenizer.padding_side = "left"
    asked = [*by_count[2][:2], by_count[3][0]]
    prompts = [processor.apply_chat_template(messages(sample)[:1], add_generation_prompt=True) for sample in asked]
    given = {"add_special_tokens": adds_begin(processor.tokenizer, prompts[0])}
    images = [[picture(jpeg) for jpeg in sample.jpegs[:2]] for sample in asked]
    inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt", **given)
    answers = model.generate(**inputs, max_new_tokens=4)[:, inputs["input_ids"].shape[1] :]
    for sample, prompt, shown, ids, mask, answer in zip(
        asked, prompts, images, inputs["input_ids"], inputs["attention_mask"], answers
    ):
        sizes = [made.parts.vision.tokens(*image.size) for image in shown]
        expected = made.encoder.encode([sample.conversations[0].value], sizes).ids.tolist()
        assert ids[mask.bool()].tolist() == expected
        alone = processor(text=prompt, images=shown, return_tensors="pt", **given)
        found = model.generate(**alone, max_new_tokens=4)[0, alone["input_ids"].shape[1] :]
        assert found.tolist() == answer[: len(found)].tolist()


@pytest.mark.parametrize("template", ["vicuna", "chat"])
def test_a_loop_of_ones_own_has_the_trainers_ids_and_labels(
    by_count: list[list[Sample]], template: str, tmp_path: Path
) -> None:
    made = make(tmp_path, nano(template=template), byte_level(CHATML))
    made.write()
    collate = ProcessorCollator(made.processor(), max_length=10**6)
    tag = by_count[0][0]
    with pytest.raises(VlmixError, match=f"{tag.id}: its text holds <image>, which the processor takes for an image"):
        collate([tag])
    text = msgspec.structs.replace(tag, conversations=turns(["Who is it?", "Nobody."]))
    mixed = [text, *(samples[0] for samples in by_count[1:])]
    for samples in [[text], *by_count[1:], mixed]:
        batch = collate(samples)
        shown = sum(len(sample.images) for sample in samples)
        assert len(batch.get("pixel_values", ())) == shown
        for sample, ids, mask, labels in zip(samples, batch["input_ids"], batch["attention_mask"], batch["labels"]):
            whole = collator(made).encode(sample)
            length = int(mask.sum())
            assert ids[:length].tolist() == whole.ids.tolist(), sample.id
            assert labels[:length].tolist() == np.where(whole.loss_mask, whole.ids, -100).tolist(), sample.id
    edge = int(np.flatnonzero(collator(made).encode(by_count[3][0]).ids == made.encoder.image_id)[-1])
    ProcessorCollator(made.processor(), max_length=edge + 1)(by_count[3][:1])
    with pytest.raises(VlmixError, match=f"{by_count[3][0].id}: max_length {edge} cuts through its image"):
        ProcessorCollator(made.processor(), max_length=edge)(by_count[3][:1])
    squares = ImageCollator(16)(mixed)
    assert len(squares.images) == 15 and [len(sample.images) for sample in squares.samples] == list(range(6))


RUN: dict[str, Any] = {"max_steps": 0, "epochs": 1, "batch": {"max_length": 1000}}
EVERY = {"interval": 1, "keep": 99}


@pytest.fixture(scope="module")
def whole(several: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed epoch in one process."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    assert train(nano(mixture=str(several), out=str(out), **RUN)) == 0
    return out


def test_a_padded_run_is_the_packed_run(whole: Path, several: Path, tmp_path: Path) -> None:
    padded = tmp_path / "padded"
    train(nano(**{**RUN, "mixture": str(several), "out": str(padded), "batch": {"max_length": 1000, "pack_length": 0}}))
    assert read(whole)[-1]["total"]["samples"] == 66 and not (whole / SKIPPED).exists()
    assert read(whole)[-1]["total"]["image_tokens"] == 4 * 11 * sum(range(6))
    assert np.allclose(losses(padded), losses(whole), rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [{"pack_length": 2048}, {"pack_length": 0, "micro_size": 3}], ids=str)
def test_two_processes_and_a_resumed_run_are_the_same(
    whole: Path, several: Path, batch: dict[str, int], tmp_path: Path
) -> None:
    recipe = tmp_path / "nano.yaml"
    recipe.write_text(yaml.safe_dump({**NANO, **RUN, "batch": {"global_size": 16, "max_length": 1000, **batch}}))
    out = tmp_path / "run"
    command = [
        "train",
        recipe,
        f"mixture={several}",
        f"out={out}",
        "checkpoint={interval: 2, keep: 9}",
        "--nproc",
        "2",
    ]
    done = vlmix(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    straight, model = rows(out), hashes(out / "model")
    assert np.allclose(losses(out), losses(whole), rtol=0, atol=2e-6)
    for path in sorted((out / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    done = vlmix(*command)
    assert done.returncode == 0 and "resumes from step 2" in done.stderr, done.stderr[-3000:]
    assert rows(out) == straight and hashes(out / "model") == model


@pytest.mark.slow
def test_samples_whose_images_do_not_fit_are_skipped_and_listed(several: Path, opened: Mixture, tmp_path: Path) -> None:
    events: list[tuple[str, Any]] = []
    out, other = tmp_path / "one", tmp_path / "two"
    # Of a tokenizer that a run trains on all texts, so that it is known before.
    train(nano(mixture=str(several), out=str(tmp_path / "known"), max_steps=1))
    known = np.load(tmp_path / "known" / "lengths.npz")
    limit = int(np.quantile(known["untruncated"], 0.6))
    changes = {"max_steps": 0, "batch": {"max_length": limit, "global_size": 8}, "checkpoint": EVERY}
    recipe = nano(mixture=str(several), out=str(out), **changes)
    train(recipe, lambda event, facts: events.append((event, facts)))
    listed = [json.loads(line) for line in (out / SKIPPED).read_text().splitlines()]
    fits = np.load(out / "lengths.npz")["fits"]
    names = opened.column("id").to_pylist()
    assert 0 < len(listed) == int((~fits).sum()) < 66
    assert listed == [
        {"id": name, "reason": "too_long", "tokens": int(tokens), "max_length": limit}
        for name, tokens, fit in zip(names, known["untruncated"], fits)
        if not fit
    ]
    facts = json.loads((out / "data.json").read_text())
    assert (facts["samples"], facts["skipped_samples"]) == (66 - len(listed), len(listed))
    assert [facts["skipped_samples"] for event, facts in events if event == "data"] == [len(listed)]
    assert read(out)[-1]["total"]["samples"] == 66 - len(listed), "all others are seen once"
    straight, files = rows(out), hashes(out / "model")

    # The same on two ranks, and when it resumes there.
    file = tmp_path / "nano.yaml"
    file.write_text(yaml.safe_dump(recipe.resolved() | {"out": str(other)}))
    shutil.copytree(out, other)
    for path in sorted((other / "checkpoints").iterdir())[2:]:
        shutil.rmtree(path)
    done = vlmix("train", file, "--nproc", "2")
    assert done.returncode == 0 and "resumes from step 2" in done.stderr, done.stderr[-3000:]
    assert done.stderr.count(f"{len(listed)} samples are skipped: their images do not fit into batch.max_length") == 1
    assert (other / SKIPPED).read_bytes() == (out / SKIPPED).read_bytes()
    assert [row["samples"] for row in rows(other)] == [row["samples"] for row in straight]
    assert np.allclose(losses(other), losses(out), rtol=0, atol=2e-6)
    assert files.keys() == hashes(other / "model").keys()


def test_a_mixture_of_which_nothing_fits_is_refused(opened: Mixture, tmp_path: Path) -> None:
    opened.subset(where="num_images > 1").save(tmp_path / "view")
    with pytest.raises(VlmixError, match=r"no sample's images fit into batch.max_length 20; raise it"):
        train(nano(mixture=str(tmp_path / "view"), out=str(tmp_path / "run"), batch={"max_length": 20}))


def test_samples_of_several_images_are_told_apart_in_a_packed_batch(made: Made, by_count: list[list[Sample]]) -> None:
    """No sample sees the images of its neighbours."""
    first, second = by_count[2][0], by_count[3][0]
    micro = collator(made)([first, second], True)
    assert micro.bounds is not None
    (_, middle), (_, end) = pairwise(micro.bounds.ends)
    assert end - middle == micro.lengths[1]
    ours = trained_logits(made, micro)[micro.sample_index == 1]
    changed = msgspec.structs.replace(first, jpegs=first.jpegs[::-1], images=first.images[::-1])
    other = collator(made)([changed, second], True)
    assert torch.allclose(trained_logits(made, other)[other.sample_index == 1], ours, rtol=0, atol=1e-6)

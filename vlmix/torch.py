"""A mixture in anybody's training loop: plain torch, Hugging Face's Trainer, Accelerate (docs/your_own_loop.md).

An item of `StepDataset` is what one rank takes of one step, so a loader without batches of its own yields the exact
schedule, and resuming is asking for the next step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from msgspec.structs import replace

from vlmix.mixture.blend import Samples
from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.record import is_blank
from vlmix.mixture.render import tokens_in_place
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.config import AspectRatio
from vlmix.train.images import CLIP_MEAN, decode, normalise, room, to_square
from vlmix.train.loader import SampleSteps, make_loader
from vlmix.train.tokens import IMAGE, blocks

__all__ = ["ImageBatch", "ImageCollator", "ProcessorCollator", "StepDataset", "make_loader", "messages", "normalise"]

IGNORED = -100
Batch = TypeVar("Batch", covariant=True)


class StepDataset(SampleSteps[Batch], Generic[Batch]):
    """Item k: what `collate` makes of the samples that `rank` of `world` ranks takes in step k of `schedule`.

    Nothing is buffered or sampled here. Load it with `make_loader`, or with any loader that takes items as they are:
    `DataLoader(steps, batch_size=None, sampler=range(start, end))`.
    """

    def __init__(
        self,
        mixture: Samples,
        schedule: Schedule,
        collate: Callable[[list[Sample]], Batch],
        *,
        rank: int = 0,
        world: int = 1,
        epochs: int = 1,
    ) -> None:
        self.mixture, self.schedule, self.collate = mixture, schedule, collate
        self.rank, self.world, self.epochs = rank, world, epochs

    def __repr__(self) -> str:
        return f"<StepDataset: {len(self)} steps, rank {self.rank} of {self.world}, {self.schedule!r}>"

    def __len__(self) -> int:
        return self.epochs * self.schedule.steps_per_epoch

    def read(self, step: int) -> list[Sample]:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        return self.mixture.read(self.schedule.rank_batch(step, self.rank, self.world))

    def item(self, step: int, read: Callable[[], list[Sample]]) -> Batch:
        return self.collate(read())


@dataclass(frozen=True)
class ImageBatch:
    """Samples with all their images [I, 3, side, side] uint8, in order: `len(sample.images)` of each sample.

    The samples come without their `jpegs`, which a worker process would have to copy to its parent."""

    samples: list[Sample]
    images: torch.Tensor


class ImageCollator:
    """Samples to squares of `side` pixels, decoded and resized as vlmix's trainer does it, and their texts."""

    def __init__(
        self,
        side: int = 336,
        image_aspect_ratio: AspectRatio = "pad",
        mean: tuple[float, float, float] = CLIP_MEAN,
    ) -> None:
        self.side, self.image_aspect_ratio, self.mean = side, image_aspect_ratio, mean

    def __call__(self, samples: Sequence[Sample]) -> ImageBatch:
        jpegs = [jpeg for sample in samples for jpeg in sample.jpegs]
        images = room(len(jpegs), self.side)
        for square, jpeg in zip(images, jpegs):
            square.copy_(to_square(decode(jpeg), self.side, self.image_aspect_ratio, self.mean))
        return ImageBatch([replace(sample, jpegs=()) for sample in samples], images)


def messages(sample: Sample) -> list[dict[str, Any]]:
    """The turns as chat messages, for `processor.apply_chat_template`. An image is a content part of its own where the
    text names it, or before all; the only one of a sample once, however often it is named."""
    values = [turn.value for turn in sample.conversations]
    if len(sample.images) > 1:
        contents = [blocks(value) for value in tokens_in_place(values, len(sample.images))]
    else:
        contents = [_text(value) for value in values]
        at = next((i for i in range(0, len(values), 2) if IMAGE in values[i]), 0)
        for i in range(0, len(values), 2) if sample.images else ():
            before, named, after = values[i].partition(IMAGE)
            if named:  # space around the image falls away where no text is on its other side
                before, after = before.lstrip(), after.replace(IMAGE, "").rstrip()
                before, after = before if after else before.rstrip(), after if before else after.lstrip()
            elif i == at:
                before, after = after, before
            contents[i] = [*_text(before), *([{"type": "image"}] if i == at else []), *_text(after)]
    roles = {"human": "user", "gpt": "assistant"}
    return [{"role": roles[turn.from_], "content": content} for turn, content in zip(sample.conversations, contents)]


def _text(text: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text}] if text else []


class ProcessorCollator:
    """Samples to the inputs of any vision-language model whose processor has a chat template.

    Gives the processor's tensors, padded on the right, and `labels` [B, T]: the token ids of the answers with what
    ends them, -100 elsewhere. What an answer is comes from the chat template: what it adds between the prompt for
    that answer and the end of its turn. Raises VlmixError for a template whose prompts are not prefixes of the whole,
    for a text that holds the processor's image token, and for a `max_length` that cuts through an image.
    """

    def __init__(self, processor: Any, max_length: int = 2048) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise VlmixError(f"{type(processor).__name__} has no chat template")
        self.processor, self.max_length = processor, max_length
        self.processor.tokenizer.padding_side = "right"
        self._told = "several_images" in str(processor.chat_template)  # so vlmix's own: see train.tokens
        self._token, image = getattr(processor, "image_token", None), getattr(processor, "image_token_id", None)
        self._image = image or (processor.tokenizer.convert_tokens_to_ids(self._token) if self._token else -1)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        texts, spans = zip(*(self._rendered(sample) for sample in samples))
        images = [[decode(jpeg)[:3] for jpeg in sample.jpegs] for sample in samples]
        batch = dict(
            self.processor(
                text=list(texts),
                images=images if any(images) else None,
                padding=True,
                return_tensors="pt",
                **self._special(texts[0]),
            )
        )
        ids = batch["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        ends = batch["attention_mask"].sum(1).tolist()
        for row, (sample, end, places) in enumerate(zip(samples, ends, spans)):
            edges = [self._edge(sample, ids[row, :end], *place) for place in places]
            for first, last in zip(edges[::2], edges[1::2]):
                labels[row, first:last] = ids[row, first:last]
        labels[ids == self._image] = IGNORED
        batch["labels"] = labels
        return self._cut(batch, samples)

    def _rendered(self, sample: Sample) -> tuple[str, list[tuple[int, int, int]]]:
        """The whole text, and of the beginning and the end of each answer: how many tokens come after it, how many of
        these are images, and how many tokens but images there are in all. Counted from the end, as a processor turns
        an image token into many, most of which stand before the first answer."""
        turns, several = messages(sample), len(sample.images) > 1
        if self._token and any(self._token in part.get("text", "") for turn in turns for part in turn["content"]):
            what = f"its text holds {self._token}, which the processor takes for an image; leave the sample out"
            raise VlmixError(f"sample {sample.id}: {what}")
        whole = self._text(turns, False, several)
        lengths = []
        for number in range(1, len(turns), 2):
            if is_blank("".join(part.get("text", "") for part in turns[number]["content"])):
                continue  # an empty answer would teach silence
            for text in (self._text(turns[:number], True, several), self._text(turns[: number + 1], False, several)):
                if not whole.startswith(text):
                    raise VlmixError(
                        f"sample {sample.id}: the chat template's prompt is not a prefix of the whole text"
                    )
                lengths.append(len(text))
        tokens = self.processor.tokenizer(whole, return_offsets_mapping=True, **self._special(whole))
        offsets = tokens["offset_mapping"]
        closing = next(number for number, (_, end) in enumerate(reversed(offsets)) if end)  # an end that is added
        images = [begin for id, (begin, _) in zip(tokens["input_ids"], offsets) if id == self._image]
        plain = len(offsets) - len(images)
        return whole, [
            (closing + sum(begin >= length for begin, _ in offsets), sum(begin >= length for begin in images), plain)
            for length in lengths
        ]

    def _edge(self, sample: Sample, ids: torch.Tensor, after: int, images: int, plain: int) -> int:
        """Where in the ids of a sample an answer begins or ends."""
        if not images:
            return len(ids) - after
        text = torch.nonzero(ids != self._image).flatten()
        if len(text) != plain:
            raise VlmixError(
                f"sample {sample.id}: an image after an answer, and the processor puts more than image tokens there"
            )
        return int(text[images - after]) if after > images else len(ids)

    def _special(self, text: str) -> dict[str, bool]:
        """A beginning is added where the template wrote none, as `apply_chat_template` does."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": begin is None or not text.startswith(begin)}

    def _text(self, turns: list[dict[str, Any]], prompt: bool, several: bool) -> str:
        told = {"several_images": several} if self._told else {}
        text: str = self.processor.apply_chat_template(turns, add_generation_prompt=prompt, tokenize=False, **told)
        return text

    def _cut(self, batch: dict[str, Any], samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        width = batch["input_ids"].shape[1]
        if width <= self.max_length:
            return batch
        for sample, ids in zip(samples, batch["input_ids"]):
            if (ids[self.max_length :] == self._image).any():
                raise VlmixError(f"sample {sample.id}: max_length {self.max_length} cuts through its image; raise it")
        return {
            name: value[:, : self.max_length] if value.dim() == 2 and value.shape[1] == width else value
            for name, value in batch.items()
        }

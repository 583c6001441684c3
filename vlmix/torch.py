"""A mixture in anybody's training loop: plain torch, Hugging Face's Trainer, Accelerate (docs/your_own_loop.md).

An item of `StepDataset` is what one rank takes of one step, so a loader without batches of its own yields the exact
schedule, and resuming is asking for the next step.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import Dataset

from vlmix.mixture.dataset.reader import Sample
from vlmix.mixture.errors import VlmixError
from vlmix.mixture.mixture import Mixture
from vlmix.mixture.schedule.schedule import Schedule
from vlmix.train.config import AspectRatio
from vlmix.train.images import CLIP_MEAN, decode, normalise, to_square
from vlmix.train.loader import make_loader

__all__ = ["ImageBatch", "ImageCollator", "ProcessorCollator", "StepDataset", "make_loader", "messages", "normalise"]

IMAGE = "<image>"
IGNORED = -100
Batch = TypeVar("Batch")


class StepDataset(Dataset[Batch], Generic[Batch]):
    """Item k: what `collate` makes of the samples that `rank` of `world` ranks takes in step k of `schedule`.

    Nothing is buffered or sampled here. Load it with `make_loader`, or with any loader that takes items as they are:
    `DataLoader(steps, batch_size=None, sampler=range(start, end))`.
    """

    def __init__(
        self,
        mixture: Mixture,
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

    def __getitem__(self, step: int) -> Batch:
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of {len(self)}")
        positions = self.schedule.rank_batch(step, self.rank, self.world)
        return self.collate([self.mixture[position] for position in positions.tolist()])


@dataclass(frozen=True)
class ImageBatch:
    """Samples with their images [B', 3, side, side] uint8: of those that have one, in the same order."""

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
        images = [
            to_square(decode(sample.jpeg), self.side, self.image_aspect_ratio, self.mean)
            for sample in samples
            if sample.jpeg is not None
        ]
        empty = torch.empty((0, 3, self.side, self.side), dtype=torch.uint8)
        return ImageBatch(list(samples), torch.stack(images) if images else empty)


def messages(sample: Sample) -> list[dict[str, Any]]:
    """The turns as chat messages, `<image>` as a content part of its own, for `processor.apply_chat_template`."""
    roles = {"human": "user", "gpt": "assistant"}
    found = []
    for turn in sample.conversations:
        content: list[dict[str, str]] = []
        for number, text in enumerate(turn.value.split(IMAGE)):
            content += [{"type": "image"}] if number else []
            text = text.strip("\n") if IMAGE in turn.value else text
            content += [{"type": "text", "text": text}] if text else []
        found.append({"role": roles[turn.from_], "content": content})
    return found


class ProcessorCollator:
    """Samples to the inputs of any vision-language model whose processor has a chat template.

    Gives the processor's tensors, padded on the right, and `labels` [B, T]: the token ids of the answers with what
    ends them, -100 elsewhere. What an answer is comes from the chat template: what it adds between the prompt for
    that answer and the end of its turn. Raises VlmixError for a template whose prompts are not prefixes of the whole,
    and for a `max_length` that cuts through an image.
    """

    def __init__(self, processor: Any, max_length: int = 2048) -> None:
        if getattr(processor, "chat_template", None) is None:
            raise VlmixError(f"{type(processor).__name__} has no chat template")
        self.processor, self.max_length = processor, max_length
        self.processor.tokenizer.padding_side = "right"

    def __call__(self, samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        texts, spans = zip(*(self._rendered(sample) for sample in samples))
        images = [decode(sample.jpeg) for sample in samples if sample.jpeg is not None]
        batch = dict(
            self.processor(
                text=list(texts), images=images or None, padding=True, return_tensors="pt", **self._special(texts[0])
            )
        )
        ids = batch["input_ids"]
        labels = torch.full_like(ids, IGNORED)
        ends = batch["attention_mask"].sum(1).tolist()
        for row, (end, answers) in enumerate(zip(ends, spans)):
            for first, last in answers:
                labels[row, end - first : end - last] = ids[row, end - first : end - last]
        batch["labels"] = labels
        return self._cut(batch, samples)

    def _rendered(self, sample: Sample) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and of each answer how many tokens from the end it begins and ends. Counted from there, as a
        processor turns an image token into many, all of which stand before the first answer."""
        turns = messages(sample)
        whole = self._text(turns, False)
        lengths = []
        for number in range(1, len(turns), 2):
            for text in (self._text(turns[:number], True), self._text(turns[: number + 1], False)):
                if not whole.startswith(text):
                    raise VlmixError(
                        f"sample {sample.id}: the chat template's prompt is not a prefix of the whole text"
                    )
                lengths.append(len(text))
        tokens = self.processor.tokenizer(whole, return_offsets_mapping=True, **self._special(whole))
        offsets = tokens["offset_mapping"]
        closing = next(number for number, (_, end) in enumerate(reversed(offsets)) if end)  # an end that is added
        after = [closing + sum(begin >= length for begin, _ in offsets) for length in lengths]
        return whole, list(zip(after[::2], after[1::2]))

    def _special(self, text: str) -> dict[str, bool]:
        """A beginning is added where the template wrote none, as `apply_chat_template` does."""
        begin = self.processor.tokenizer.bos_token
        return {"add_special_tokens": begin is None or not text.startswith(begin)}

    def _text(self, turns: list[dict[str, Any]], prompt: bool) -> str:
        text: str = self.processor.apply_chat_template(turns, add_generation_prompt=prompt, tokenize=False)
        return text

    def _cut(self, batch: dict[str, Any], samples: Sequence[Sample]) -> dict[str, torch.Tensor]:
        width = batch["input_ids"].shape[1]
        if width <= self.max_length:
            return batch
        image = getattr(self.processor, "image_token_id", None)
        if image is None:
            image = self.processor.tokenizer.convert_tokens_to_ids(self.processor.image_token)
        for sample, ids in zip(samples, batch["input_ids"]):
            if (ids[self.max_length :] == image).any():
                raise VlmixError(f"sample {sample.id}: max_length {self.max_length} cuts through its image; raise it")
        return {
            name: value[:, : self.max_length] if value.dim() == 2 and value.shape[1] == width else value
            for name, value in batch.items()
        }

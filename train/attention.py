"""Causal attention for packed and padded batches, exact without masks.

Registered with transformers under a name of its own, for which it builds no mask: packed samples are separated by
their bounds, whatever `use_cache` or `attention_mask` say, and right padding needs none, as no token looks ahead.
"""

import dataclasses
import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from vlmix.mixture.errors import VlmixError

NAME = "vlmix"

_ROUNDING = 0.05  # of the largest value: what bf16 may take a small attention from the exact one

# Not in torch 2.11.
_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


@dataclass(frozen=True)
class Bounds:
    """What of a packed row belongs together: G runs of tokens, samples or the trunks and branches of trees. It stays on
    the CPU, where every layer reads it as numbers, so that none waits for a GPU."""

    ends: list[int]
    """[G + 1]: run g has the tokens from `ends[g]` to before `ends[g + 1]`."""
    before: list[tuple[int, int]]
    """[G] begin and end of the tokens that a run sees beside its own, before them: a branch its trunk."""
    arrays: "Kernel | None" = None

    @classmethod
    def of(cls, ends: Sequence[int], before: Sequence[tuple[int, int]] | None = None) -> "Bounds":
        return cls(list(ends), [(end, end) for end in ends[:-1]] if before is None else list(before))

    @classmethod
    def of_trees(cls, lengths: Sequence[int], trees: Sequence[int], trunks: Sequence[int]) -> "Bounds":
        """Of each tree the trunk, then the rest of its samples: `lengths` [S] of samples, `trees` how many of them, one
        after the other, share the first tokens, `trunks` how many tokens these are."""
        ends, before, samples = [0], list[tuple[int, int]](), iter(lengths)
        for size, trunk in zip(trees, trunks, strict=True):
            start = ends[-1]
            if trunk:
                before.append((start, start))
                ends.append(start + trunk)
            for rest in (next(samples) - trunk for _ in range(size)):
                if rest:  # a cut may have left nothing of a branch
                    before.append((start, start + trunk))
                    ends.append(ends[-1] + rest)
        return cls(ends, before)

    @property
    def spans(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """([G] tokens of each run, [G] tokens that it sees before them)."""
        return np.diff(self.ends), np.diff(np.array(self.before, dtype=np.int64).reshape(-1, 2))[:, 0]

    def placed(self, states: torch.Tensor) -> "Bounds":
        """For the attention over `states`: where a kernel for ragged batches takes them, with its arrays beside them
        on their device, which all layers share."""
        ragged = has_kernel(states.device, states.dtype)
        return dataclasses.replace(self, arrays=Kernel.of(self, states.device)) if ragged else self


class Kernel(NamedTuple):
    """What the kernel for ragged batches reads: bounds of queries and of keys, the longest of each, and the places of
    the keys, None where they are those of the queries."""

    queries: torch.Tensor
    keys: torch.Tensor
    longest: tuple[int, int]
    places: torch.Tensor | None

    @classmethod
    def of(cls, bounds: Bounds, device: torch.device) -> "Kernel":
        own, seen = bounds.spans
        ends = torch.tensor(bounds.ends, dtype=torch.int32)
        if not seen.any():
            there = ends.to(device, non_blocking=True)
            return cls(there, there, (int(own.max()), int(own.max())), None)
        keys = torch.from_numpy(np.cumsum([0, *(own + seen)]).astype(np.int32))
        runs = zip(bounds.before, pairwise(bounds.ends))
        places = torch.cat([torch.arange(*part) for trunk, mine in runs for part in (trunk, mine)])
        longest = int(own.max()), int((own + seen).max())
        queries, keys, places = (each.to(device, non_blocking=True) for each in (ends, keys, places))
        return cls(queries, keys, longest, places)


def register() -> str:
    """Makes the attention known to transformers; the name to give to `set_attn_implementation`."""
    AttentionInterface.register(NAME, attend)
    return NAME


def sliding_windows(config: Any) -> tuple[int, int]:
    """The window of an LM's configuration in tokens, and how many of its layers have it; (0, 0): none."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    layers = kinds.count("sliding_attention")
    return (int(window), layers) if window and layers else (0, 0)


def attend(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    bounds: Bounds | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[B, T, H, D] of query [B, H, T, D], key and value [B, K, T, D], K dividing H.

    `sliding_window`: tokens that a token of this layer sees, itself among them; None: all before it. `bounds`: of what
    is packed into a batch of one.
    """
    if bounds is None:
        out = _causal(query, key, value, scaling, sliding_window)
    elif bounds.arrays is not None:
        return _varlen(query, key, value, scaling, bounds.arrays, sliding_window), None
    else:
        out = _by_runs(query, key, value, scaling, bounds, sliding_window)
    return out.transpose(1, 2).contiguous(), None


# Compiled, it would be made anew for the numbers of each row.
@torch.compiler.disable  # type: ignore[untyped-decorator]
def _by_runs(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    bounds: Bounds,
    window: int | None,
) -> torch.Tensor:
    parts = []
    for (start, stop), (first, end) in zip(pairwise(bounds.ends), bounds.before):
        keys, values = (
            torch.cat([each[:, :, first:end], each[:, :, start:stop]], dim=2) if end > first else each[:, :, start:stop]
            for each in (key, value)
        )
        parts.append(_causal(query[:, :, start:stop], keys, values, scaling, window))
    return torch.cat(parts, dim=2)


def has_kernel(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether torch's kernel for ragged batches takes such states."""
    return device.type == "cuda" and dtype in (torch.bfloat16, torch.float16)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    """The last query sees all keys, and each one before it one key less. SDPA's own `is_causal` begins with the first
    ones instead, so it is for as many queries as keys."""
    mask = None
    if (window is not None and window < key.shape[2]) or query.shape[2] < key.shape[2]:
        mask = _band(query.shape[2], key.shape[2], window, query.device)
    causal = mask is None
    if query.shape[1] != key.shape[1]:  # written out: torch.compile stops at a flag that it does not know
        return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=True)
    return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling)


def _band(queries: int, keys: int, window: int | None, device: torch.device) -> torch.Tensor:
    """[queries, keys] bool: what the last tokens see, each of itself and the `window` - 1 before it; None: of all."""
    seen = torch.ones((queries, keys), dtype=torch.bool, device=device).tril(keys - queries)
    return seen if window is None else seen.triu(keys - queries + 1 - window)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    kernel: Kernel,
    window: int | None = None,
) -> torch.Tensor:
    """torch's flash kernel for ragged batches, which is causal from the last query and key on. Where it does not group
    heads itself, shared keys are repeated."""
    if kernel.places is not None:
        key, value = (each.index_select(2, kernel.places) for each in (key, value))
    more: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _GROUPS:
        more["enable_gqa"] = True
    elif groups > 1:
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    q, k, v = (heads[0].transpose(0, 1).contiguous() for heads in (query, key, value))
    out = varlen_attn(q, k, v, kernel.queries, kernel.keys, *kernel.longest, **more)
    assert isinstance(out, torch.Tensor)
    return out[None]


def check_kernel(device: torch.device) -> None:
    """Raises VlmixError if the kernel for ragged batches computes a small tree otherwise than in fp32 on the CPU, in
    its results or its gradients: as one would that is causal from the first query and key on."""
    generator = torch.Generator().manual_seed(0)
    shapes = (1, 4, 14, 64), (1, 2, 14, 64), (1, 2, 14, 64), (1, 14, 4, 64)
    *states, grad = (torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes)
    bounds = Bounds.of([0, 5, 8, 12, 14], [(0, 0), (5, 5), (5, 8), (5, 8)])
    kernel = Kernel.of(bounds, device)
    for window in (None, 3):
        q, k, v = (each.float().requires_grad_() for each in states)
        expected = _by_runs(q, k, v, None, bounds, window).transpose(1, 2)
        exact = [expected.detach(), *torch.autograd.grad(expected, (q, k, v), grad.float())]
        q, k, v = (each.to(device, copy=True).requires_grad_() for each in states)
        found = _varlen(q, k, v, None, kernel, window)
        ours = [found.detach(), *torch.autograd.grad(found, (q, k, v), grad.to(device), materialize_grads=True)]
        for one, other in zip(exact, ours):
            apart = float((one - other.float().cpu()).abs().max() / one.abs().max())
            if not apart < _ROUNDING:
                raise VlmixError(
                    f"torch {torch.__version__} on {device}: its attention for ragged batches computes samples that "
                    f"share a picture wrongly, {apart:.2f} apart from the exact one; take batch.share_images: 1"
                )

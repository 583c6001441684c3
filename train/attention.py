"""Causal attention for packed and padded batches, exact without masks.

Registered with transformers under a name of its own, for which it builds no mask: packed samples are separated by
their bounds, whatever `use_cache` or `attention_mask` say, and right padding needs none, as no token looks ahead.
"""

import inspect
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "vlmix"

# Not in torch 2.11.
_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters


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
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """[B, T, H, D] of query [B, H, T, D], key and value [B, K, T, D], K dividing H.

    `sliding_window`: tokens that a token of this layer sees, itself among them; None: all before it. `cu_seq_lens_q`
    [S + 1] int32: bounds of the samples packed into a batch of one, where `placed` puts them; `max_length_q`: the
    longest.
    """
    if cu_seq_lens_q is None:
        out = _causal(query, key, value, scaling, sliding_window)
    elif _has_kernel(query):
        return _varlen(query, key, value, scaling, cu_seq_lens_q, int(max_length_q or 0), sliding_window), None
    else:
        bounds = cu_seq_lens_q.tolist()
        parts = [
            _causal(query[:, :, a:b], key[:, :, a:b], value[:, :, a:b], scaling, sliding_window)
            for a, b in pairwise(bounds)
            if b > a
        ]
        out = torch.cat(parts, dim=2)
    return out.transpose(1, 2).contiguous(), None


def placed(bounds: torch.Tensor | None, hidden: torch.Tensor) -> torch.Tensor | None:
    """The bounds of packed samples, given on the CPU, for the attention over `hidden`: on its device where the kernel
    for ragged batches reads them, on the CPU where every layer reads them as numbers, so that none waits for a GPU."""
    return bounds.to(hidden.device, non_blocking=True) if bounds is not None and _has_kernel(hidden) else bounds


def _has_kernel(states: torch.Tensor) -> bool:
    return states.is_cuda and states.dtype in (torch.bfloat16, torch.float16)


def _causal(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None, window: int | None
) -> torch.Tensor:
    mask = None
    if window is not None and window < query.shape[2]:
        mask = _band(query.shape[2], window, query.device)
    causal = mask is None
    if query.shape[1] != key.shape[1]:  # written out: torch.compile stops at a flag that it does not know
        return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=True)
    return scaled_dot_product_attention(query, key, value, mask, is_causal=causal, scale=scaling)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """[T, T] bool: what each token sees of itself and the `window` - 1 before it."""
    seen = torch.ones((length, length), dtype=torch.bool, device=device)
    return seen.tril().triu(1 - window)


def _varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None,
    bounds: torch.Tensor,
    longest: int,
    window: int | None = None,
) -> torch.Tensor:
    """torch's flash kernel for ragged batches. Where it does not group heads itself, shared keys are repeated."""
    more: dict[str, Any] = {"scale": scaling, "window_size": (-1 if window is None else window - 1, 0)}
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and _GROUPS:
        more["enable_gqa"] = True
    elif groups > 1:
        key, value = (heads.repeat_interleave(groups, dim=1) for heads in (key, value))
    q, k, v = (heads[0].transpose(0, 1).contiguous() for heads in (query, key, value))
    out = varlen_attn(q, k, v, bounds, bounds, longest, longest, **more)
    assert isinstance(out, torch.Tensor)
    return out[None]

"""The LM's head and its cross-entropy, without holding all logits.

For T target tokens and a vocabulary of V, no pass makes a tensor of more than `chunk` x V numbers. The forward pass
goes over the tokens and keeps two numbers of each; the backward pass computes the logits again, over parts of the
vocabulary, so that every row of the head's gradient is one product, rounded once, as without chunks.
"""

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


def chunked_cross_entropy(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    """[T] fp32: losses of `targets` [T] int64 under the logits of hidden states [T, D] and a head [V, D], bias [V].

    Products have the type of `hidden`, softmax and losses are fp32. The result is that of
    `cross_entropy(linear(hidden, weight, bias).float(), targets, reduction="none")`. Without a target, the gradients
    are zeros.
    """
    losses: torch.Tensor = _ChunkedCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, bias, targets, chunk
    )
    return losses


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        chunk: int,
    ) -> torch.Tensor:
        # As in log_softmax, the largest logit and the rest are kept apart: their sum would lose digits of small losses.
        largest, rest, losses = (hidden.new_empty(len(targets), dtype=torch.float32) for _ in range(3))
        for start in range(0, len(targets), chunk):
            rows = slice(start, start + chunk)
            logits = linear(hidden[rows], weight, bias).float()
            largest[rows] = logits.amax(1)
            logits -= largest[rows, None]
            picked = logits.gather(1, targets[rows, None])[:, 0]
            rest[rows] = logits.exp_().sum(1).log()
            losses[rows] = rest[rows] - picked
        ctx.save_for_backward(hidden, weight, bias, targets, largest, rest)
        ctx.chunk = chunk
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias, targets, largest, rest = ctx.saved_tensors
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_hidden = torch.zeros_like(hidden, dtype=torch.float32) if wants_hidden else None
        of_weight = torch.empty_like(weight) if wants_weight else None
        of_bias = torch.empty_like(bias) if wants_bias else None
        for part in _parts(len(weight), len(targets), ctx.chunk):
            size = part.stop - part.start
            grads = linear(hidden, weight[part], None if bias is None else bias[part]).float()
            grads -= largest[:, None]
            grads -= rest[:, None]
            grads.exp_()
            here = (targets >= part.start) & (targets < part.stop)
            column = (targets - part.start).clamp(0, size - 1)
            grads.scatter_add_(1, column[:, None], -here[:, None].float())
            grads *= scale[:, None]
            if of_bias is not None:
                of_bias[part] = grads.sum(0)
            grads = grads.to(hidden.dtype)
            if of_weight is not None:
                torch.mm(grads.T, hidden, out=of_weight[part])
            if of_hidden is not None:
                of_hidden += grads @ weight[part]
        return None if of_hidden is None else of_hidden.to(hidden.dtype), of_weight, of_bias, None, None


def _parts(vocabulary: int, tokens: int, chunk: int) -> list[slice]:
    """Parts of the vocabulary whose logits of all tokens are at most `chunk` x vocabulary."""
    width = min(max(chunk * vocabulary // max(tokens, 1), 1), vocabulary)
    if width > 64:
        width -= width % 64  # what matrix units take in one piece
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]

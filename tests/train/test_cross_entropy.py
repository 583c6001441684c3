"""The loss in chunks, against torch's own cross-entropy over all logits, and what it holds at most."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy, linear
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vlmix.train.cross_entropy import chunked_cross_entropy

TOKENS, VOCABULARY, WIDTH = 100, 1_000, 8


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    return cross_entropy(linear(hidden, weight, bias).float(), targets, reduction="none")


def inputs(tokens: int, dtype: torch.dtype = torch.float32, spread: float = 1.0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    hidden = torch.randn(tokens, WIDTH, dtype=dtype)
    weight, bias = spread * torch.randn(VOCABULARY, WIDTH, dtype=dtype), torch.randn(VOCABULARY, dtype=dtype)
    targets = torch.randint(VOCABULARY, (tokens,))
    if tokens:
        targets[0], targets[-1] = 0, VOCABULARY - 1
    return hidden, weight, bias, targets


def results(
    loss_of: Callable[..., torch.Tensor],
    given: tuple[torch.Tensor, ...],
    chunk: int,
    trained: str = "hidden weight bias",
) -> dict[str, torch.Tensor]:
    hidden, weight, bias, targets = given
    leaves = {
        name: value.clone().requires_grad_(name in trained)
        for name, value in {"hidden": hidden, "weight": weight, "bias": bias}.items()
    }
    losses = loss_of(leaves["hidden"], leaves["weight"], leaves["bias"] if "bias" in trained else None, targets, chunk)
    (losses * torch.linspace(0.5, 2, len(losses))).sum().backward()
    return {"losses": losses.detach()} | {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


@pytest.mark.parametrize("chunk", [7, 64, 100, 5_000])
@pytest.mark.parametrize("trained", ["hidden weight bias", "hidden weight", "hidden", "weight"])
@pytest.mark.parametrize("spread", [1.0, 20.0], ids=["unsure", "certain"])
def test_losses_and_gradients_are_those_of_all_logits(chunk: int, trained: str, spread: float) -> None:
    given = inputs(TOKENS, spread=spread)
    doubled = tuple(value.double() if value.is_floating_point() else value for value in given)
    exact = results(plain, doubled, chunk, trained)
    expected, found = results(plain, given, chunk, trained), results(chunked_cross_entropy, given, chunk, trained)
    assert found.keys() == expected.keys() == {"losses", *trained.split()}, "what is frozen gets no gradient"
    for name, value in exact.items():
        # Large logits are rounded by whole digits of a softmax, and each processor's product has its own order.
        rounding = 2 * float((expected[name] - value).norm())
        assert (found[name] - value).norm() <= max(1e-6 * float(value.norm()), rounding), name


@pytest.mark.parametrize("chunk", [7, 5_000])
def test_in_bf16_it_is_as_far_from_the_exact_gradients_as_all_logits_are(chunk: int) -> None:
    given = inputs(TOKENS, torch.bfloat16)
    exact = results(plain, tuple(value.double() if value.is_floating_point() else value for value in given), chunk)
    expected, found = results(plain, given, chunk), results(chunked_cross_entropy, given, chunk)
    for name, value in exact.items():
        assert found[name].dtype == expected[name].dtype
        assert 0 < (found[name] - value).norm() < 1.1 * (expected[name] - value).norm(), name


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_a_small_loss_keeps_its_digits(chunk: int) -> None:
    """Where logits are large and the target's is the largest by far."""
    hidden, weight, _, _ = inputs(TOKENS, spread=30)
    targets = linear(hidden, weight).argmax(1)
    exact = plain(hidden.double(), weight.double(), None, targets, chunk)
    found = chunked_cross_entropy(hidden, weight, None, targets, chunk)
    expected = cross_entropy(linear(hidden, weight), targets, reduction="none")
    assert (found - exact).abs().max() <= 2 * (expected - exact).abs().max()


def test_without_targets_gradients_are_zeros() -> None:
    found = results(chunked_cross_entropy, inputs(0), 10)
    assert found["losses"].shape == (0,)
    assert found["weight"].shape == (VOCABULARY, WIDTH) and not found["weight"].any() and not found["bias"].any()


class Largest(TorchDispatchMode):
    """Numbers of the largest tensor that any operator returns, in the forward and in the backward pass."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.numbers = max(
            self.numbers, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)), 0
        )
        return out


@pytest.mark.parametrize("trained", ["hidden weight bias", "hidden"])
@pytest.mark.parametrize("chunk", [10, 25, 99])
def test_no_tensor_is_larger_than_a_chunk_of_logits(chunk: int, trained: str) -> None:
    def largest(loss_of: Callable[..., torch.Tensor]) -> int:
        given = inputs(TOKENS)
        with Largest() as mode:
            results(loss_of, given, chunk, trained)
        return mode.numbers

    assert WIDTH * VOCABULARY < 10 * VOCABULARY, "the head's gradient, which is larger than no chunk"
    assert largest(plain) == TOKENS * VOCABULARY
    assert chunk * VOCABULARY // 2 < largest(chunked_cross_entropy) <= chunk * VOCABULARY


def test_what_is_kept_for_the_backward_pass_is_two_numbers_a_token() -> None:
    hidden, weight, _, targets = inputs(TOKENS)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        chunked_cross_entropy(hidden.requires_grad_(), weight, None, targets, 10)
    assert sorted(tensor.numel() for tensor in kept) == sorted([hidden.numel(), weight.numel(), *[TOKENS] * 3])

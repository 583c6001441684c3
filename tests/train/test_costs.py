"""What a step makes the processor wait for, and the trace of it."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.train.nano import nano
from vlmix.mixture.errors import VlmixError
from vlmix.train.attention import Bounds
from vlmix.train.loop import Loop
from vlmix.train.parallel import Ranks
from vlmix.train.run import train

# On a GPU each of these waits until everything before it is computed: a number is read, or a shape depends on values.
OPERATORS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "masked_scatter_backward",
    "equal",
    "bincount",
    "_unique2",
}
METHODS = {"tolist", "cpu", "numpy"}
"""Those that reach no such operator on the CPU."""


class Operators(TorchDispatchMode):
    """Counts operators that wait, those of the backward pass, too."""

    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and isinstance(args[1], list | tuple)
        if name in OPERATORS or (masks and any(x is not None and x.dtype == torch.bool for x in args[1])):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, found: Counter[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in METHODS:
            self.found[func.__name__] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("grids", [None, [[1, 2], [2, 1]]], ids=["one view", "tiles"])
def test_a_step_waits_once_for_the_gradients_norm(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grids: Any
) -> None:
    found: Counter[str] = Counter()
    rows: list[Counter[str]] = []

    def on_the_cpu(call: Callable[..., Any]) -> Callable[..., Any]:  # over gloo, so it waits for no GPU
        def uncounted(*given: Any) -> Any:
            before = Counter(found)
            result = call(*given)
            found.clear()
            found.update(before)
            return result

        return uncounted

    def report(event: str, facts: dict[str, Any]) -> None:
        if event == "step":
            rows.append(Counter(found))

    for name in ("all_reduce_sum", "gather"):
        monkeypatch.setattr(Ranks, name, on_the_cpu(getattr(Ranks, name)))
    recipe = nano(
        mixture=str(mixture),
        out=str(tmp_path / "run"),
        batch={"pack_length": 0, "micro_size": 6},
        model={"tile_grids": grids},
        activation_checkpointing=True,
        loader_workers=1,
        log_interval=2,
        max_steps=4,
    )
    with Operators(found), Methods(found):
        train(recipe, report)
    assert rows[1] - rows[0] == {"_local_scalar_dense": 2, "tolist": 1}, "two norms and a row of metrics"


def test_bounds_are_where_they_are_read() -> None:
    """On the GPU for its kernel; on the CPU, from the start, where each layer cuts the samples apart."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for trunk in (5, 0):
            bounds = Bounds.of([0, 5, 12], [(0, 0), (0, trunk)])
            for device, dtype in (("cuda", torch.bfloat16), ("cuda", torch.float32), ("cpu", torch.bfloat16)):
                arrays = bounds.placed(torch.empty(1, 12, 32, dtype=dtype, device=device)).arrays
                if (device, dtype) != ("cuda", torch.bfloat16):
                    assert arrays is None
                else:
                    assert arrays is not None
                    moved = [arrays.queries, arrays.keys, *([] if arrays.places is None else [arrays.places])]
                    assert len(moved) == 2 + bool(trunk) and {each.device.type for each in moved} == {"cuda"}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="waits are CUDA's own count")
@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_forward_and_backward_passes_do_not_wait_on_a_gpu(
    mixture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    passes = Loop._forward_backward

    def strict(loop: Loop, step: int, *rest: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if step else "default")  # the first step sets up what lasts
        try:
            return passes(loop, step, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(Loop, "_forward_backward", strict)
    assert train(nano(mixture=str(mixture), out=str(tmp_path / "run"), precision=precision, loader_workers=1)) == 0


def test_a_trace_has_the_steps_that_were_asked_for(mixture: Path, tmp_path: Path) -> None:
    events = []
    recipe = nano(mixture=str(mixture), out=str(tmp_path / "run"), profile=[2, 3], max_steps=4)
    train(recipe, lambda event, facts: events.append((event, facts.get("out"))))
    (path,) = (tmp_path / "run" / "profile").iterdir()
    assert path.name == "steps-2-3.json.gz" and ("profiled", str(path)) in events
    with gzip.open(path) as file:
        trace = json.load(file)["traceEvents"]
    steps = {event["name"]: event for event in trace if event.get("cat") == "user_annotation"}
    assert {name for name in steps if name.startswith("step ")} == {"step 2", "step 3"}
    second = steps["step 2"]
    within = {
        event["name"]
        for event in trace
        if event.get("cat") == "cpu_op" and second["ts"] <= event["ts"] <= second["ts"] + second["dur"]
    }
    assert {"aten::mm", "aten::_fused_adamw_"} <= within, "the whole step"


def test_a_trace_that_the_training_ends_before_is_refused(mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(VlmixError, match="profile: it ends with step 9, the training with step 6"):
        train(nano(mixture=str(mixture), out=str(tmp_path / "run"), profile=[2, 9]))
    with pytest.raises(VlmixError, match="the first and the last step"):
        nano(profile=[3, 2])

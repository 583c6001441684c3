"""What `compile` sees: every block of the LM as one graph, and the CUDA kernel's call, traced without a GPU."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("transformers")

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.train.nano import nano
from vlmix.mixture.errors import VlmixError
from vlmix.train import attention
from vlmix.train.attention import _GROUPS, Kernel, _varlen
from vlmix.train.model import TrainableVLM, build
from vlmix.train.tokens import train_tokenizer


def test_a_block_is_one_graph_for_batches_of_all_sizes() -> None:
    parts, _ = build(nano(), train_tokenizer(["some words"], 300))
    lm = TrainableVLM(parts, nano()).hf.model.language_model
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    whole = [lm(inputs_embeds=embeds, use_cache=False).last_hidden_state for embeds in EMBEDS]
    for block in lm.layers:
        block.compile(dynamic=True, fullgraph=True, backend=keep)
    compiled = [lm(inputs_embeds=embeds, use_cache=False).last_hidden_state for embeds in EMBEDS]
    for one, other in zip(whole, compiled, strict=True):
        torch.testing.assert_close(one, other)
    assert len(graphs) == len(lm.layers), "no graph is made again for another length"


EMBEDS = [torch.randn(2, length, 32) for length in (9, 12, 31)]


def ragged(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    queries: torch.Tensor,
    keys: torch.Tensor,
    *_: int,
    window_size: tuple[int, int],
    upper: bool = False,
    forgets: bool = False,
    **more: Any,
) -> torch.Tensor:
    """What the kernel does, run by run and in fp32: causal from the last query and key on; `upper`: from the first."""
    out = []
    for (a, b), (c, d) in zip(pairwise(queries.tolist()), pairwise(keys.tolist())):
        q, k, v = query[a:b].float(), key[c:d].float(), value[c:d].float()
        k, v = (each.detach() if forgets else each for each in (k, v))
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
        seen = (torch.arange(d - c) - torch.arange(b - a)[:, None]) - (0 if upper else (d - c) - (b - a))
        mask = (seen <= 0) & ((window_size[0] < 0) | (seen >= -window_size[0]))
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[2] ** 0.5
        weights = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
        out.append(torch.einsum("hqk,khd->qhd", weights.nan_to_num(), v))
    return torch.cat(out).to(query.dtype)


def test_a_kernel_is_tried_before_it_trains_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it is on a GPU is not known here; one that aligns otherwise, or forgets gradients, is refused."""
    monkeypatch.setattr(attention, "varlen_attn", ragged)
    attention.check_kernel(torch.device("cpu"))
    for wrong in ({"upper": True}, {"forgets": True}):
        monkeypatch.setattr(attention, "varlen_attn", partial(ragged, **wrong))
        with pytest.raises(VlmixError, match="computes samples that share a picture wrongly"):
            attention.check_kernel(torch.device("cpu"))


@pytest.mark.parametrize("trees", [False, True])
@pytest.mark.parametrize(("kv_heads", "window"), [(4, None), (2, None), (2, 32)])
def test_the_kernel_for_packed_samples_is_part_of_the_graph(kv_heads: int, window: int | None, trees: bool) -> None:
    """Its arguments are those that this version of torch takes; it computes on CUDA alone."""
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(_varlen, fullgraph=True, dynamic=True, backend=keep)
    with FakeTensorMode():
        query = torch.empty(1, 4, 100, 64, dtype=torch.bfloat16)
        key = torch.empty(1, kv_heads, 100, 64, dtype=torch.bfloat16)
        bounds = torch.empty(3, dtype=torch.int32)
        plain = Kernel(bounds, bounds, (60, 60), None)
        gathered = Kernel(bounds, torch.empty(3, dtype=torch.int32), (60, 90), torch.empty(130, dtype=torch.int64))
        out = compiled(query, key, key, 0.125, gathered if trees else plain, window)
    assert out.shape == (1, 100, 4, 64)
    (graph,) = graphs
    (call,) = [node for node in graph.graph.nodes if "varlen" in str(node.target)]
    # torch counts the tokens before a token, transformers the token itself among them.
    (before, after) = next(arg for arg in call.args if isinstance(arg, list))
    before = before if isinstance(before, int) else before.meta["example_value"].node.hint
    assert (before, after) == (31 if window else -1, 0), "nobody looks ahead, or back beyond the window"
    picked = [node for node in graph.graph.nodes if "index_select" in str(node.target)]
    assert len(picked) == 2 * trees, "keys and values of branches are gathered"
    copies = [node for node in graph.graph.nodes if "repeat" in str(node.target) or "expand" in str(node.target)]
    assert bool(copies) == (kv_heads < 4 and not _GROUPS), "shared keys are copied only where the kernel cannot share"
    assert kv_heads == 4 or not _GROUPS or True in call.args

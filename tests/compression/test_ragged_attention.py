"""The torch kernel against plain loops, and the varlen kernels' arguments through a stand-in of the same signature."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headprobe.compression import ragged_attention
from headprobe.compression.importance import AttentionShape
from headprobe.compression.ragged_attention import (
    KernelNeeds,
    pick_kernel,
    torch_attention,
    weigh_by_segment,
    weigh_masked,
)
from headprobe.compression.ragged_store import RaggedStore, Segment
from headprobe.errors import OptionError


def random_store(lengths: list[int], batch: int, dim: int = 8, slack: int = 5, biased: bool = False) -> RaggedStore:
    """Segments of these lengths with rubbish in the slack, which no kernel may read."""
    generator = torch.Generator().manual_seed(sum(lengths))
    segments = [
        Segment(
            torch.randn(n, dim, generator=generator), torch.randn(n, dim, generator=generator),
            torch.randn(n, generator=generator) if biased else None,
        )
        for n in lengths
    ]  # fmt: skip
    store = RaggedStore(segments, batch, [n + slack for n in lengths], slack)
    used = store.layout.offset < store.length[store.layout.segment]
    store.keys[~used] = 1e4
    store.values[~used] = float("nan")
    store.values[~used] = 1e4
    return store


def plain(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """One query of one head at a time."""
    batch, heads, count, _ = query.shape
    out = torch.zeros(batch, heads, count, store.values.shape[-1])
    for b in range(batch):
        for h in range(heads):
            segment = b * store.num_kv_heads + h * store.num_kv_heads // heads
            start, length = int(store.starts[segment]), int(store.lengths[segment])
            for t in range(count):
                seen = slice(start, start + length - count + t + 1)
                scores = store.keys[seen] @ query[b, h, t] * shape.scaling
                if shape.softcap is not None:
                    scores = torch.tanh(scores / shape.softcap) * shape.softcap
                if store.bias is not None:
                    scores = scores + store.bias[seen]
                weights = scores.exp() / (scores.exp().sum() + (0 if shape.sinks is None else shape.sinks[h].exp()))
                out[b, h, t] = weights @ store.values[seen]
    return out


def query_for(store: RaggedStore, group: int, count: int, dim: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(9)
    return torch.randn(store.batch, store.num_kv_heads * group, count, dim, generator=generator)


LAYOUTS = [([7], 1), ([5, 5], 1), ([3, 9, 4, 30], 1), ([3, 9, 4, 6], 2), ([6] * 6, 3), ([1, 2, 3, 4, 5, 6], 3)]


@pytest.mark.parametrize(("lengths", "batch"), LAYOUTS)
@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "softcap", "sinks", "bias"])
def test_the_torch_kernel_equals_plain_loops(lengths: list[int], batch: int, group: int, count: int, kind: str) -> None:
    store = random_store([n + 2 for n in lengths], batch, biased=kind == "bias")
    query = query_for(store, group, count)
    sinks = torch.linspace(-1, 1, query.shape[1]) if kind == "sinks" else None
    shape = AttentionShape(0.3, 1.5 if kind == "softcap" else None, sinks)
    wanted = plain(query, store, shape)
    torch.testing.assert_close(torch_attention(query, store, shape), wanted, atol=1e-5, rtol=1e-5)
    for way in (weigh_masked, weigh_by_segment):
        torch.testing.assert_close(way(query, store, shape)[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("lengths", "batch"), LAYOUTS)
@pytest.mark.parametrize("way", [weigh_masked, weigh_by_segment])
def test_weights_of_one_query_are_averaged_over_its_group(way: Any, lengths: list[int], batch: int) -> None:
    store = random_store(lengths, batch)
    query = query_for(store, 2, 1)
    _, weights = way(query, store, AttentionShape(0.3), with_weights=True)
    assert weights is not None
    for index, (start, length) in enumerate(zip(store.starts, store.lengths, strict=True)):
        keys = store.keys[start : start + length]
        own = query.view(store.num_segments, 2, -1)[index]
        expected = torch.softmax(own @ keys.T * 0.3, -1).mean(0)
        torch.testing.assert_close(weights[start : start + length], expected, atol=1e-6, rtol=1e-5)
        assert (weights[start + length : start + store.capacities[index]] == 0).all()


def test_many_queries_go_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store([9, 14], 1)
    query = query_for(store, 2, 6)
    whole = weigh_masked(query, store, AttentionShape(0.3))[0]
    monkeypatch.setattr(ragged_attention, "SCORE_ELEMENTS", 1)
    torch.testing.assert_close(weigh_masked(query, store, AttentionShape(0.3))[0], whole)


# -- varlen kernels -------------------------------------------------------------------------------------------------


def varlen(query, keys, values, cu_q, cu_k, max_q, max_k, *, scale, causal, softcap=0.0, sinks=None, used=None):  # type: ignore[no-untyped-def]
    """What every varlen kernel computes, with the checks that theirs make; keys beyond `max_k` are dropped."""
    assert query.is_contiguous()
    assert cu_q.dtype == cu_k.dtype == used.dtype == torch.int32
    out = torch.full((query.shape[0], query.shape[1], values.shape[-1]), float("nan"))
    for s in range(len(cu_q) - 1):
        begin, end = int(cu_q[s]), int(cu_q[s + 1])
        assert end - begin <= max_q
        start, length = int(cu_k[s]), min(int(used[s]), max_k)
        assert start + length <= int(cu_k[s + 1])
        for t in range(begin, end):
            last = start + (length - (end - begin) + t - begin + 1 if causal else length)
            for h in range(query.shape[1]):
                scores = keys[start:last, 0] @ query[t, h] * scale
                scores = torch.tanh(scores / softcap) * softcap if softcap else scores
                top = scores.exp()
                out[t, h] = top @ values[start:last, 0] / top.sum()
    return out


def install_stand_in(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    import sys
    from types import ModuleType

    if kernel == "torch-varlen":

        def aten(q, k, v, cq, ck, mq, mk, p, causal, debug, *, scale, seqused_k):  # type: ignore[no-untyped-def]
            return (varlen(q, k, v, cq, ck, mq, mk, scale=scale, causal=causal, used=seqused_k),)

        monkeypatch.setattr(ragged_attention, "_torch_flash", aten)
        return

    def flash2(q, k, v, cq, ck, mq, mk, p, scale, causal, softcap=0.0, seqused_k=None):  # type: ignore[no-untyped-def]
        return (varlen(q, k, v, cq, ck, mq, mk, scale=scale, causal=causal, softcap=softcap, used=seqused_k),)

    def flash4(q, k, v, **given):  # type: ignore[no-untyped-def]
        names = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
        four = [given.pop(name) for name in names]
        options = {"scale": given.pop("softmax_scale"), "causal": given.pop("causal"), "used": given.pop("seqused_k")}
        assert set(given) == {"softcap", "learnable_sink"}
        return varlen(q, k, v, *four, softcap=given["softcap"], **options), None

    modules: dict[str, Any] = {
        "flash_attn": ModuleType("flash_attn"), "flash_attn.cute": ModuleType("flash_attn.cute"),
        "flash_attn.flash_attn_interface": ModuleType("flash_attn.flash_attn_interface"),
    }  # fmt: skip
    modules["flash_attn.cute"].flash_attn_varlen_func = flash4
    modules["flash_attn.flash_attn_interface"]._flash_attn_varlen_forward = flash2
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("kernel", ["torch-varlen", "flash2", "flash4"])
@pytest.mark.parametrize(("lengths", "batch"), LAYOUTS)
@pytest.mark.parametrize("count", [1, 3])
def test_varlen_kernels_get_arguments_that_mean_the_same(
    monkeypatch: pytest.MonkeyPatch, kernel: str, lengths: list[int], batch: int, count: int
) -> None:
    store = random_store([n + 2 for n in lengths], batch)
    query = query_for(store, 2, count)
    shape = AttentionShape(0.3, None if kernel == "torch-varlen" else 1.5)
    wanted = plain(query, store, shape)
    attend = next(k.attend for k in ragged_attention.KERNELS if k.name == kernel)
    install_stand_in(monkeypatch, kernel)
    torch.testing.assert_close(attend(query, store, shape), wanted, atol=1e-5, rtol=1e-5)


def test_the_operator_that_torch_varlen_calls_has_the_arguments_it_is_given() -> None:
    names = [a.name for a in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert names[:10] == [
        "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
        "return_debug_mask",
    ]  # fmt: skip
    assert {"scale", "seqused_k"} <= set(names)


# -- choice ---------------------------------------------------------------------------------------------------------


def test_on_a_cpu_the_torch_kernel_is_taken_and_the_reasons_told() -> None:
    kernel, reason = pick_kernel("auto", KernelNeeds("cpu", "float32", 64))
    assert kernel.name == "torch"
    assert "torch-varlen runs on CUDA devices only, not on cpu" in reason


@pytest.mark.parametrize(
    ("needs", "name", "reason"),
    [
        (KernelNeeds("cuda", "float32", 64), "torch-varlen", "takes half precision, not float32"),
        (KernelNeeds("cuda", "bfloat16", 512), "torch-varlen", "head width 512 is above 256"),
        (KernelNeeds("cuda", "bfloat16", 84), "torch-varlen", "head width 84 is no multiple of 8"),
        (KernelNeeds("cuda", "bfloat16", 64, softcap=True), "torch-varlen", "cannot cap scores"),
        (KernelNeeds("cuda", "bfloat16", 64, sinks=True), "torch-varlen", "knows no attention sinks"),
        (KernelNeeds("cuda", "bfloat16", 64, bias=True), "torch-varlen", "takes no bias"),
        (KernelNeeds("cuda", "bfloat16", 64), "flash4", "flash_attn.cute is not installed"),
    ],
)
def test_a_kernel_that_cannot_serve_says_why(needs: KernelNeeds, name: str, reason: str) -> None:
    with pytest.raises(OptionError, match=f"the attention kernel {name} cannot be used here: .*{reason}"):
        pick_kernel(name, needs)


def test_unknown_kernels_are_refused_with_the_known_ones() -> None:
    with pytest.raises(OptionError, match="unknown attention kernel 'fast': known are auto, flash4, flash2"):
        pick_kernel("fast", KernelNeeds("cpu", "float32", 64))


# -- the store ------------------------------------------------------------------------------------------------------


def test_appending_writes_behind_each_segment_and_grows_when_there_is_no_room() -> None:
    store = random_store([2, 4], 1, slack=2)
    expected = [store.keys[0:2].clone(), store.keys[4:8].clone()]
    for step in range(5):
        new = torch.full((1, 2, 1, 8), float(step))
        address = store.keys.data_ptr()
        store.append(new, new)
        assert (store.keys.data_ptr() == address) == (step not in (2,))
        expected = [torch.cat([e, new[0, 0]]) for e in expected]
        for index, wanted in enumerate(expected):
            start, length = int(store.starts[index]), int(store.lengths[index])
            torch.testing.assert_close(store.keys[start : start + length], wanted)
    assert store.length.tolist() == [7, 9]
    assert store.lengths.tolist() == [7, 9]

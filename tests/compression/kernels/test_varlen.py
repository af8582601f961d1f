"""The varlen kernels' arguments, through a stand-in of the same signature."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels import varlen as kernels
from headprobe.compression.kernels.choice import KERNELS
from tests.compression.kernels.stores import LAYOUTS, plain, query_for, random_store


def varlen(query, keys, values, cu_q, cu_k, max_q, max_k, *, scale, causal, softcap=0.0, sinks=None, used=None):  # type: ignore[no-untyped-def]
    """What every varlen kernel computes, with the checks that theirs make; keys beyond `max_k` are dropped.

    `sinks`: one for each query head of the call, the same for all sequences.
    """
    assert query.is_contiguous()
    assert cu_q.dtype == cu_k.dtype == used.dtype == torch.int32
    count = len(used)
    assert cu_q.shape == cu_k.shape == (count + 1,)
    assert (int(cu_q[0]), int(cu_q[-1])) == (0, query.shape[0])
    assert keys.shape[:2] == values.shape[:2] == (int(cu_k[-1]), 1)
    assert keys.shape[2] == query.shape[2]
    assert sinks is None or sinks.shape == (query.shape[1],)
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
                extra = 0.0 if sinks is None else sinks[h].float().exp()
                out[t, h] = top @ values[start:last, 0] / (top.sum() + extra)
    return out


def flash4(
    q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, seqused_k, softmax_scale, causal,
    learnable_sink=None, softcap=0.0,
):  # type: ignore[no-untyped-def]  # fmt: skip
    """flash-attn 4's entry: sinks in bfloat16, and the log of sums beside the output.

    The order of what comes behind `v` differs between its releases (there may be a `qv`), so all that is named.
    """
    assert learnable_sink is None or learnable_sink.dtype == torch.bfloat16
    lines = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    options = {"scale": softmax_scale, "causal": causal, "softcap": softcap, "used": seqused_k}
    return varlen(q, k, v, *lines, sinks=learnable_sink, **options), None


def flash2(q, k, v, cq, ck, mq, mk, p, scale, *, causal, softcap=0.0, seqused_k):  # type: ignore[no-untyped-def]
    """flash-attn 2's private forward."""
    assert p == 0.0
    return (varlen(q, k, v, cq, ck, mq, mk, scale=scale, causal=causal, softcap=softcap, used=seqused_k),)


def install_stand_in(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    import sys
    from types import ModuleType

    if kernel == "torch-varlen":

        def aten(q, k, v, cq, ck, mq, mk, p, causal, debug, *, scale, seqused_k):  # type: ignore[no-untyped-def]
            assert (p, debug) == (0.0, False)
            return (varlen(q, k, v, cq, ck, mq, mk, scale=scale, causal=causal, used=seqused_k),)

        monkeypatch.setattr(kernels, "_torch_flash", aten)
        return

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
    attend = next(k.attend for k in KERNELS if k.name == kernel)
    install_stand_in(monkeypatch, kernel)
    torch.testing.assert_close(attend(query, store, shape), wanted, atol=1e-5, rtol=1e-5)


def given_to_flash4(call: kernels.VarlenCall) -> dict[str, Any]:
    return {
        "q": call.query, "k": call.keys, "v": call.values, "cu_seqlens_q": call.cu_queries,
        "cu_seqlens_k": call.starts, "max_seqlen_q": call.count, "max_seqlen_k": call.longest,
        "seqused_k": call.used, "softmax_scale": 0.3, "causal": False,
    }  # fmt: skip


@pytest.mark.parametrize("stand_in", ["flash4", "flash2"])
def test_the_stand_ins_take_what_the_real_functions_take(stand_in: str) -> None:
    source = next(kernel.source for kernel in KERNELS if kernel.name == stand_in)
    assert source is not None
    if source.fault() is not None:
        pytest.skip(f"needs {source.package}: {source.fault()}")
    given = inspect.signature(flash4 if stand_in == "flash4" else flash2).parameters
    real = inspect.signature(source.load()).parameters
    named = [name for name, parameter in given.items() if parameter.kind is parameter.KEYWORD_ONLY]
    assert set(named) <= set(real)
    positional = len(given) - len(named)
    kinds = [parameter.kind for parameter in list(real.values())[:positional]]
    assert kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD] * positional


def test_the_stand_in_of_flash_attn_4_takes_sinks_as_it_does() -> None:
    """One KV head: its group's sinks are those of the call, and `plain` agrees. With several groups they cannot be."""
    one = random_store([5, 7], batch=2)
    query, sinks = query_for(one, 3, 1), torch.tensor([0.5, -1.0, 2.0])
    call = kernels.varlen_call(query, one)
    out, _ = flash4(**given_to_flash4(call), learnable_sink=sinks.bfloat16())
    wanted = plain(query, one, AttentionShape(0.3, None, sinks))
    torch.testing.assert_close(kernels.unpacked(out, query, one), wanted, atol=1e-5, rtol=1e-5)
    assert (wanted - plain(query, one, AttentionShape(0.3))).abs().max() > 0.1
    two = kernels.varlen_call(query_for(random_store([5, 7], batch=1), 3, 1), random_store([5, 7], batch=1))
    with pytest.raises(AssertionError):
        flash4(**given_to_flash4(two), learnable_sink=torch.zeros(6, dtype=torch.bfloat16))


def test_no_varlen_kernel_is_offered_where_there_are_sinks() -> None:
    assert [kernel.name for kernel in KERNELS if kernel.sinks] == ["triton", "torch"]


def test_the_operator_that_torch_varlen_calls_has_the_arguments_it_is_given() -> None:
    names = [a.name for a in torch.ops.aten._flash_attention_forward.default._schema.arguments]
    assert names[:10] == [
        "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p", "is_causal",
        "return_debug_mask",
    ]  # fmt: skip
    assert {"scale", "seqused_k"} <= set(names)

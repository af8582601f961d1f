"""The varlen kernels of torch and flash-attn over a ragged store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.source import FLASH2, FLASH4
from headprobe.compression.ragged_store import RaggedStore

# The varlen kernels of torch and flash-attn over a ragged store: half precision on a CUDA device.
#
# flash-attn 2, also the one inside torch, cuts long segments for a single token and several query heads over a KV
# head, but not once sequences times KV heads nearly fill the GPU; then the longest segment is walked by one block
# alone.


@dataclass(frozen=True, eq=False)
class VarlenCall:
    """A ragged store as a varlen kernel wants it: each (sequence, KV head) is a sequence of one KV head.

    `query` `[S * T, H/G, d]`; `keys`, `values` `[total, 1, d]`; `cu_queries`, `starts` int32 `[S + 1]`; `used` int32
    `[S]`; `longest` bounds the used lengths (one that is too small would silently drop keys).
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    cu_queries: torch.Tensor
    starts: torch.Tensor
    used: torch.Tensor
    count: int
    longest: int


def varlen_call(query: torch.Tensor, store: RaggedStore) -> VarlenCall:
    """The arguments of a varlen kernel for `query` `[B, H, T, d]` on `store`; with T = 1 nothing is copied or made."""
    batch, heads, count, dim = query.shape
    groups, bounds = store.num_kv_heads, store.bounds
    packed = query.reshape(batch, groups, heads // groups, count, dim).transpose(2, 3)
    return VarlenCall(
        query=packed.reshape(batch * groups * count, heads // groups, dim).contiguous(),
        keys=store.keys[:, None],
        values=store.values[:, None],
        cu_queries=bounds.ordinals if count == 1 else bounds.ordinals * count,
        starts=bounds.starts,
        used=store.length,
        count=count,
        longest=bounds.longest,
    )


def unpacked(output: torch.Tensor, query: torch.Tensor, store: RaggedStore) -> torch.Tensor:
    """A varlen kernel's output `[S * T, H/G, d]` as `[B, H, T, d]`."""
    batch, heads, count, _ = query.shape
    groups = store.num_kv_heads
    return output.view(batch, groups, count, heads // groups, -1).transpose(2, 3).reshape(batch, heads, count, -1)


def torch_varlen_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """flash-attn 2 inside torch (2.11 and newer), through its internal entry, which takes used lengths."""
    call = varlen_call(query, store)
    out = _torch_flash(
        call.query, call.keys, call.values, call.cu_queries, call.starts, call.count, call.longest, 0.0,
        call.count > 1, False, scale=shape.scaling, seqused_k=call.used,
    )[0]  # fmt: skip
    return unpacked(out, query, store)


def _torch_flash(*args: Any, **options: Any) -> Any:
    return torch.ops.aten._flash_attention_forward(*args, **options)


def flash2_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """flash-attn 2.8, through its private forward: only that one takes used lengths."""
    call = varlen_call(query, store)
    out = FLASH2.load()(
        call.query, call.keys, call.values, call.cu_queries, call.starts, call.count, call.longest, 0.0,
        shape.scaling, causal=call.count > 1, softcap=shape.softcap or 0.0, seqused_k=call.used,
    )[0]  # fmt: skip
    return unpacked(out, query, store)


def flash4_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """flash-attn 4 (Hopper, Blackwell).

    Its sinks are one for each query head of a call (`[H/G]` here), the same for all sequences; ours differ from KV head
    to KV head, each of which is a sequence, so they are not passed on.
    """
    call = varlen_call(query, store)
    out = FLASH4.load()(
        call.query, call.keys, call.values, cu_seqlens_q=call.cu_queries, cu_seqlens_k=call.starts,
        seqused_k=call.used, max_seqlen_q=call.count, max_seqlen_k=call.longest, softmax_scale=shape.scaling,
        causal=call.count > 1, softcap=shape.softcap or 0.0,
    )  # fmt: skip
    return unpacked(out[0] if isinstance(out, tuple) else out, query, store)

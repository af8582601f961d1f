"""The varlen kernels of torch and flash-attn over a ragged store, and what kernels are imported from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.ragged_store import RaggedStore

# What kernels are imported from, and whether that works: one that does not must cost nothing but itself.


@dataclass(frozen=True)
class Source:
    """A function that a kernel calls: `package` is what is said to be installed or not."""

    package: str
    module: str
    function: str

    def fault(self) -> str | None:
        """Why it cannot be imported, None where it can; found out once."""
        return _fault(self)

    def load(self) -> Any:
        """The function itself, imported when it is called: not every machine has the package."""
        return getattr(import_module(self.module), self.function)


# A package may be found and still lack what is called: flash-attn 4 alone makes a `flash_attn` with nothing but `cute`.
FLASH4 = Source("flash_attn.cute", "flash_attn.cute", "flash_attn_varlen_func")
FLASH2 = Source("flash_attn", "flash_attn.flash_attn_interface", "_flash_attn_varlen_forward")
TRITON = Source("triton", "headprobe.compression.kernels.split_programs", "attend_split")


@cache
def _fault(source: Source) -> str | None:
    try:
        module = import_module(source.module)
    except ModuleNotFoundError as error:
        return _missing(source, error.name or "")
    except Exception as error:  # whatever a foreign package does when it is imported on a machine that it does not like
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        return f"{source.package} cannot be imported: {reason}"
    return None if hasattr(module, source.function) else f"{source.module} has no {source.function}"


def _missing(source: Source, name: str) -> str:
    of_itself = any(f"{whole}.".startswith(f"{name}.") for whole in (source.package, source.module))
    return f"{source.package} is not installed" if of_itself else f"{source.package} cannot be imported: no {name}"


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

"""Attention over a ragged store: the plain torch kernel, and the varlen kernels of torch and flash-attn on a GPU.

All take `query` `[B, H, T, d]`, the last `T` tokens of their sequences, whose own keys and values are already in the
store, and give `[B, H, T, d_v]`. A query sees all that its segment held before, and the new entries up to its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from headprobe.compression.importance import AttentionShape
from headprobe.compression.ragged_store import RaggedStore
from headprobe.errors import OptionError
from headprobe.models.dense_attention import causal_end

SCORE_ELEMENTS = 1 << 26  # scores that the torch kernel holds at a time
Attend = Callable[[torch.Tensor, RaggedStore, AttentionShape], torch.Tensor]


# -- plain torch ----------------------------------------------------------------------------------------------------


def torch_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """Any device, any head width, softcap, sinks and bias."""
    return weigh(query, store, shape)[0]


def weigh(
    query: torch.Tensor, store: RaggedStore, shape: AttentionShape, *, with_weights: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Outputs, and if asked for the weights of the only query (T = 1) as `[total]`, averaged over each group's heads.

    On a CPU one segment after another, with lengths known on the host. On other devices, where a step may be captured
    as a graph and lengths lie on the device: segments of equal room are one batched product; otherwise a sequence's
    segments are multiplied with all its heads at once and what belongs to another head is masked.
    """
    if query.device.type == "cpu":
        return weigh_by_segment(query, store, shape, with_weights=with_weights)
    return weigh_masked(query, store, shape, with_weights=with_weights)


def weigh_masked(
    query: torch.Tensor, store: RaggedStore, shape: AttentionShape, *, with_weights: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`weigh` without a number that the host would have to know."""
    if store.is_even:
        return _weigh_even(query, store, shape, with_weights)
    outputs, weights = [], []
    for sequence in range(query.shape[0]):
        output, weight = _weigh_uneven(query[sequence], store, sequence, shape, with_weights)
        outputs.append(output)
        weights.append(weight)
    return torch.stack(outputs), torch.cat(weights) if with_weights else None


def weigh_by_segment(
    query: torch.Tensor, store: RaggedStore, shape: AttentionShape, *, with_weights: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`weigh`, one segment after another."""
    batch, heads, count, dim = query.shape
    groups = store.num_kv_heads
    size = heads // groups
    if count == 1 and shape.softcap is None and shape.sinks is None and store.bias is None and not with_weights:
        step = _level_step if store.is_level else _plain_step
        return step(query, store, shape.scaling), None
    out = query.new_empty(batch * groups, size * count, store.values.shape[-1])
    given = torch.zeros(store.keys.shape[0], dtype=torch.float32) if with_weights else None
    queries = query.reshape(batch * groups, size * count, dim)
    for index, (start, length) in enumerate(zip(store.starts.tolist(), store.lengths.tolist(), strict=True)):
        used = slice(start, start + length)
        scores = queries[index].float() @ store.keys[used].float().T
        scores = _capped(scores, shape) if store.bias is None else _capped(scores, shape) + store.bias[used]
        sinks = None
        if shape.sinks is not None:
            own = shape.sinks.view(groups, size)[index % groups]
            sinks = own.repeat_interleave(count)[:, None]
        if count > 1:
            seen = causal_end(count, length, query.device)
            scores = scores.view(size, count, length).masked_fill(~seen, float("-inf")).view(-1, length)
        weights = _softmax(scores, sinks)
        torch.mm(weights.to(store.values.dtype), store.values[used], out=out[index])
        if given is not None:
            given[used] = weights.mean(0)
    return out.view(batch, heads, count, -1), given


def _plain_step(query: torch.Tensor, store: RaggedStore, scaling: float) -> torch.Tensor:
    """One new token, nothing special: the loop with the fewest operations."""
    batch, heads, _, dim = query.shape
    rows = (query.float() * scaling).view(store.num_segments, -1, dim).unbind(0)
    out = [
        torch.softmax(row @ keys.float().T, -1).to(values.dtype) @ values
        for row, keys, values in zip(rows, *store.pieces(), strict=True)
    ]
    return torch.cat(out).view(batch, heads, 1, -1)


def _level_step(query: torch.Tensor, store: RaggedStore, scaling: float) -> torch.Tensor:
    """One new token on segments of equal room and length: a dense cache in all but name."""
    batch, groups, room, length = query.shape[0], store.num_kv_heads, int(store.capacities[0]), int(store.lengths[0])
    keys, values = (t.view(batch, groups, room, -1)[:, :, :length] for t in (store.keys, store.values))
    return scaled_dot_product_attention(query, keys, values, scale=scaling, enable_gqa=query.shape[1] != groups)


def _weigh_even(query, store, shape, with_weights):  # type: ignore[no-untyped-def]
    batch, heads, count, dim = query.shape
    groups = store.num_kv_heads
    room = int(store.capacities[0])
    keys = store.keys.view(batch, groups, room, -1)
    values = store.values.view(batch, groups, room, -1)
    q = query.reshape(batch, groups, -1, dim)
    scores = (q.float() @ keys.float().transpose(2, 3)).view(batch, groups, heads // groups, count, room)
    if store.bias is not None:
        scores = _capped(scores, shape) + store.bias.view(batch, groups, 1, 1, room)
    else:
        scores = _capped(scores, shape)
    places = torch.arange(room, device=query.device)
    before = store.length.view(batch, groups, 1, 1, 1) - count
    seen = places <= before + torch.arange(count, device=query.device)[:, None]
    sinks = None if shape.sinks is None else shape.sinks.view(1, groups, -1, 1, 1).expand(batch, -1, -1, count, -1)
    weights = _softmax(scores.masked_fill(~seen, float("-inf")), sinks)
    out = weights.to(values.dtype).view(batch, groups, -1, room) @ values
    given = weights[:, :, :, 0].mean(2).flatten() if with_weights else None
    return out.view(batch, heads, count, -1), given


def _weigh_uneven(query, store, sequence, shape, with_weights):  # type: ignore[no-untyped-def]
    """One sequence: `query` `[H, T, d]` -> `[H, T, d_v]`, and the weights `[entries of the sequence]`."""
    heads, count, _ = query.shape
    groups = store.num_kv_heads
    first = sequence * groups
    start, end = int(store.starts[first]), int(store.starts[first + groups - 1] + store.capacities[first + groups - 1])
    keys, values = store.keys[start:end], store.values[start:end]
    segment, offset = store.layout.segment[start:end], store.layout.offset[start:end]
    block = max(1, SCORE_ELEMENTS // (heads * (end - start)))
    outputs, given = [], None
    for a in range(0, count, block):
        b = min(a + block, count)
        scores = _capped((query[:, a:b].flatten(0, 1).float() @ keys.float().T).view(heads, b - a, -1), shape)
        if store.bias is not None:
            scores = scores + store.bias[start:end]
        before = store.length[segment] - count
        seen = offset <= before + torch.arange(a, b, device=query.device)[:, None]
        own = segment - first == torch.arange(groups, device=query.device)[:, None]
        mask = (own[:, None, None] & seen).expand(-1, heads // groups, -1, -1).flatten(0, 1)
        sinks = None if shape.sinks is None else shape.sinks.view(-1, 1, 1).expand(-1, b - a, -1)
        weights = _softmax(scores.masked_fill(~mask, float("-inf")), sinks)
        outputs.append((weights.to(values.dtype).flatten(0, 1) @ values).view(heads, b - a, -1))
        if with_weights:
            given = weights[:, 0].sum(0) / (heads // groups)
    return torch.cat(outputs, 1), given


def _capped(scores: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    scores = scores * shape.scaling
    return scores if shape.softcap is None else torch.tanh(scores / shape.softcap) * shape.softcap


def _softmax(scores: torch.Tensor, sinks: torch.Tensor | None) -> torch.Tensor:
    """Softmax over the last dimension; `sinks` are an extra term that takes its share and is dropped."""
    if sinks is None:
        return torch.softmax(scores, -1)
    return torch.softmax(torch.cat([scores, sinks.float()], -1), -1)[..., :-1]


# -- varlen kernels -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class VarlenCall:
    """A ragged store as a varlen kernel wants it: each (sequence, KV head) is a sequence of one KV head.

    `query` `[S * T, H/G, d]`; `keys`, `values` `[total, 1, d]`; `cu_queries`, `starts` int32 `[S + 1]`; `used` int32
    `[S]`; `longest` bounds the used lengths (one that is too small would drop keys in silence).
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
    """The arguments of a varlen kernel for `query` `[B, H, T, d]` on `store`."""
    batch, heads, count, dim = query.shape
    groups = store.num_kv_heads
    packed = query.view(batch, groups, heads // groups, count, dim).transpose(2, 3)
    device, segments = query.device, batch * groups
    return VarlenCall(
        query=packed.reshape(segments * count, heads // groups, dim).contiguous(),
        keys=store.keys[:, None],
        values=store.values[:, None],
        cu_queries=torch.arange(0, (segments + 1) * count, count, dtype=torch.int32, device=device),
        starts=torch.nn.functional.pad(store.start, (0, 1), value=store.keys.shape[0]),
        used=store.length,
        count=count,
        longest=int(store.capacities.max()),
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
    from flash_attn.flash_attn_interface import _flash_attn_varlen_forward

    call = varlen_call(query, store)
    out = _flash_attn_varlen_forward(
        call.query, call.keys, call.values, call.cu_queries, call.starts, call.count, call.longest, 0.0,
        shape.scaling, causal=call.count > 1, softcap=shape.softcap or 0.0, seqused_k=call.used,
    )[0]  # fmt: skip
    return unpacked(out, query, store)


def flash4_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """flash-attn 4 (Hopper, Blackwell), which knows sinks and splits long segments."""
    from flash_attn.cute import flash_attn_varlen_func

    call = varlen_call(query, store)
    out = flash_attn_varlen_func(
        call.query, call.keys, call.values, cu_seqlens_q=call.cu_queries, cu_seqlens_k=call.starts,
        seqused_k=call.used, max_seqlen_q=call.count, max_seqlen_k=call.longest, softmax_scale=shape.scaling,
        causal=call.count > 1, softcap=shape.softcap or 0.0, learnable_sink=shape.sinks,
    )  # fmt: skip
    return unpacked(out[0] if isinstance(out, tuple) else out, query, store)


# -- choice ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """A way to compute ragged attention. `refuses(...)` says why it can't be used, or None where it can."""

    name: str
    attend: Attend
    module: str | None = None  # what must be installed
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    weights: bool = False
    max_head_dim: int = 256
    only_cuda: bool = True

    def refuses(self, needs: KernelNeeds) -> str | None:
        """Why this kernel cannot serve `needs`; None where it can."""
        reasons = (
            (self.only_cuda and needs.device != "cuda", f"runs on CUDA devices only, not on {needs.device}"),
            (self.module is not None and not _installed(self.module), f"{self.module} is not installed"),
            (self.only_cuda and needs.dtype not in ("float16", "bfloat16"), f"takes half precision, not {needs.dtype}"),
            (needs.head_dim > self.max_head_dim, f"head width {needs.head_dim} is above {self.max_head_dim}"),
            (self.only_cuda and needs.head_dim % 8 != 0, f"head width {needs.head_dim} is no multiple of 8"),
            (needs.softcap and not self.softcap, "cannot cap scores (softcap)"),
            (needs.sinks and not self.sinks, "knows no attention sinks"),
            (needs.bias and not self.bias, "takes no bias (compensation entries)"),
            (needs.weights and not self.weights, "gives no weights, from which entries are evicted while decoding"),
        )
        return next((reason for holds, reason in reasons if holds), None)


@dataclass(frozen=True)
class KernelNeeds:
    """What a model and a policy ask of a kernel."""

    device: str
    dtype: str
    head_dim: int
    softcap: bool = False
    sinks: bool = False
    bias: bool = False
    weights: bool = False


KERNELS = (
    Kernel("flash4", flash4_attention, "flash_attn.cute", softcap=True, sinks=True),
    Kernel("flash2", flash2_attention, "flash_attn", softcap=True),
    Kernel("torch-varlen", torch_varlen_attention),
    Kernel(
        "torch",
        torch_attention,
        softcap=True,
        sinks=True,
        bias=True,
        weights=True,
        max_head_dim=1 << 20,
        only_cuda=False,
    ),
)
KERNEL_NAMES = ("auto", *(kernel.name for kernel in KERNELS))


def pick_kernel(name: str, needs: KernelNeeds) -> tuple[Kernel, str]:
    """The kernel called `name`, or for "auto" the first that can serve `needs`; and why.

    Raises `OptionError` for an unknown name, or a named kernel that cannot serve.
    """
    if name not in KERNEL_NAMES:
        raise OptionError(f"unknown attention kernel {name!r}: known are {', '.join(KERNEL_NAMES)}")
    refused: list[str] = []
    for kernel in KERNELS:
        reason = kernel.refuses(needs)
        if name in ("auto", kernel.name):
            if reason is None:
                return kernel, "; ".join(refused) if refused else "the first choice"
            refused.append(f"{kernel.name} {reason}")
    raise OptionError(f"the attention kernel {name} cannot be used here: {refused[0].removeprefix(name + ' ')}")


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False

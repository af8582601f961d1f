"""Attention over a ragged store in plain torch: any device, and the oracle for every other kernel.

All kernels take `query` `[B, H, T, d]`, the last `T` tokens of their sequences, whose own keys and values are already
in the store, and give `[B, H, T, d_v]`. A query sees all that its segment held before, and the new entries up to its
own.
"""

from __future__ import annotations

import torch
from torch.nn.functional import scaled_dot_product_attention

from headprobe.attention.dense import causal_end
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.ragged_store import RaggedStore

SCORE_ELEMENTS = 1 << 26  # scores that the torch kernel holds at a time


def torch_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """Any device, any head width, softcap, sinks and bias."""
    return weigh(query, store, shape)[0]


def torch_weigh(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> tuple[torch.Tensor, torch.Tensor]:
    """As `torch_attention` of one query, and its weights."""
    out, weights = weigh(query, store, shape, with_weights=True)
    assert weights is not None
    return out, weights


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
    if store.is_even and store.kv_cache_dtype == AUTO:  # of others a sequence at a time is read
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
        step = _level_step if store.is_level and store.kv_cache_dtype == AUTO else _plain_step
        return step(query, store, shape.scaling), None
    out = query.new_empty(batch * groups, size * count, store.widths[1])
    given = torch.zeros(store.total, dtype=torch.float32) if with_weights else None
    queries = query.reshape(batch * groups, size * count, dim)
    for index, (start, length) in enumerate(zip(store.starts.tolist(), store.lengths.tolist(), strict=True)):
        used = slice(start, start + length)
        keys, values = store.read(used)
        scores = queries[index].float() @ keys.float().T
        scores = _capped(scores, shape) if store.bias is None else _capped(scores, shape) + store.bias[used]
        sinks = None
        if shape.sinks is not None:
            own = shape.sinks.view(groups, size)[index % groups]
            sinks = own.repeat_interleave(count)[:, None]
        if count > 1:
            seen = causal_end(count, length, query.device)
            scores = scores.view(size, count, length).masked_fill(~seen, float("-inf")).view(-1, length)
        weights = _softmax(scores, sinks)
        torch.mm(weights.to(values.dtype), values, out=out[index])
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
    keys, values = store.read(slice(start, end))
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

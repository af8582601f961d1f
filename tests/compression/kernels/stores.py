"""Stores with rubbish in their slack, and the oracle: one query of one head at a time."""

from __future__ import annotations

import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.ragged_store import RaggedStore, Segment


def random_store(
    lengths: list[int], batch: int, dim: int = 8, slack: int = 5, biased: bool = False, device: str = "cpu"
) -> RaggedStore:
    """Segments of these lengths with rubbish in the slack, which no kernel may read."""
    generator = torch.Generator().manual_seed(sum(lengths))
    segments = [
        Segment(
            torch.randn(n, dim, generator=generator).to(device), torch.randn(n, dim, generator=generator).to(device),
            torch.randn(n, generator=generator).to(device) if biased else None,
        )
        for n in lengths
    ]  # fmt: skip
    store = RaggedStore(segments, batch, [n + slack for n in lengths], slack)
    poison(store, 1e4)
    return store


def poison(store: RaggedStore, rubbish: float) -> None:
    """Fill the slack of a store."""
    unused = store.layout.offset >= store.length[store.layout.segment]
    store.keys[unused] = rubbish
    store.values[unused] = rubbish
    if store.bias is not None:
        store.bias[unused] = rubbish


def plain(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """One query of one head at a time."""
    batch, heads, count, _ = query.shape
    out = torch.zeros(batch, heads, count, store.values.shape[-1])
    for b in range(batch):
        for h in range(heads):
            for t in range(count):
                seen, weights = plain_row(query, store, shape, b, h, t)
                out[b, h, t] = weights @ store.values[seen].float()
    return out


def plain_weights(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """Weights of the only query `[total]`, averaged over each group's heads; 0 for what is not in use."""
    given = torch.zeros(store.keys.shape[0])
    group = query.shape[1] // store.num_kv_heads
    for b in range(query.shape[0]):
        for h in range(query.shape[1]):
            seen, weights = plain_row(query, store, shape, b, h, 0)
            given[seen] += weights / group
    return given


def plain_row(query: torch.Tensor, store: RaggedStore, shape: AttentionShape, b: int, h: int, t: int):  # type: ignore[no-untyped-def]
    """What a query sees, as a slice of the store, and its weights."""
    segment = b * store.num_kv_heads + h * store.num_kv_heads // query.shape[1]
    start, length = int(store.starts[segment]), int(store.lengths[segment])
    seen = slice(start, start + length - query.shape[2] + t + 1)
    scores = store.keys[seen].float() @ query[b, h, t].float() * shape.scaling
    if shape.softcap is not None:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    if store.bias is not None:
        scores = scores + store.bias[seen]
    return seen, scores.exp() / (scores.exp().sum() + (0 if shape.sinks is None else shape.sinks[h].exp()))


def query_for(store: RaggedStore, group: int, count: int, dim: int = 8) -> torch.Tensor:
    """Random queries of the last `count` tokens."""
    generator = torch.Generator().manual_seed(9)
    return torch.randn(store.batch, store.num_kv_heads * group, count, dim, generator=generator)


LAYOUTS = [([7], 1), ([5, 5], 1), ([3, 9, 4, 30], 1), ([3, 9, 4, 6], 2), ([6] * 6, 3), ([1, 2, 3, 4, 5, 6], 3)]

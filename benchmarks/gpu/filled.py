"""Caches of any length without a prefill: random keys and values, laid out as a plan says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.shapes import Shape
from headprobe.compression.budgets import Ints
from headprobe.compression.conversation import Conversation
from headprobe.compression.kernels.choice import Kernel
from headprobe.compression.policies import CompressionPlan, make_policy
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.ragged_store import RaggedStore, Segment
from headprobe.compression.session import CompressionSession, compress
from headprobe.evaluation.costs.shapes import uneven_scores

UNEVEN_BETA = 1.01  # all but a hundredth of the budget is shared by score


def uneven_plan(shape: Shape, budget: int) -> CompressionPlan:
    """HeadKV's plan for those scores."""
    policy = make_policy("headkv-r2", beta=UNEVEN_BETA)
    scores = uneven_scores(shape.layers, shape.kv_heads)
    return CompressionPlan(policy, shape.layers, shape.kv_heads, budget=budget, head_scores=scores)


def full_plan(shape: Shape) -> CompressionPlan:
    """The full cache: nothing is evicted, KV heads are not repeated."""
    return CompressionPlan(make_policy("full"), shape.layers, shape.kv_heads)


@contextmanager
def planned(bench: Bench, plan: CompressionPlan, prefill_chunk: int | None = None) -> Iterator[CompressionSession]:
    """The model in a compression session with a plan of ours: its head scores are in no file."""
    with compress(bench.model, "full", prefill_chunk=prefill_chunk) as session:
        session.plan = plan
        yield session


def filled_store(bench: Bench, lengths: Ints, batch: int, slack: int) -> RaggedStore:
    """Segments of these lengths `[batch * G]` with random entries, written in place."""
    nothing = torch.empty(0, bench.shape.head_dim, dtype=bench.dtype, device=bench.device)
    store = RaggedStore([Segment(nothing, nothing)] * len(lengths), batch, lengths + slack, slack)
    store.keys.normal_()
    store.values.normal_()
    store.lengths = lengths
    added = torch.from_numpy(lengths).to(bench.device)
    store.length += added.to(store.length.dtype)
    store.last += added
    return store


def filled_cache(
    bench: Bench, plan: CompressionPlan, kernel: Kernel, tokens: int, batch: int, slack: int
) -> RaggedCache:
    """What `batch` prompts of `tokens` random tokens might have left behind."""
    cache = RaggedCache(bench.shape.config(), plan, kernel, slack)
    for layer, capacities in zip(cache.ragged_layers, plan.capacities(tokens), strict=True):
        layer.store = filled_store(bench, np.tile(capacities, batch), batch, slack)
        layer.lazy_initialization(layer.store.keys, layer.store.values)
        layer.seen = tokens
    cache.pads = [0] * batch
    return cache


def used_bytes(cache: RaggedCache) -> int:
    """Bytes of the entries in use, slack left out: what a step must read."""
    stores = [layer.store for layer in cache.ragged_layers if layer.store is not None]
    return sum(int(store.lengths.sum()) * 2 * store.keys.shape[1] * store.keys.element_size() for store in stores)


def set_kernel(cache: RaggedCache, kernel: Kernel) -> None:
    """Let all layers attend by this kernel, also where a step with another one was broken off."""
    cache.conversation = Conversation()
    for layer in cache.ragged_layers:
        layer.kernel = kernel


def stock_cache(bench: Bench, tokens: int) -> Any:
    """transformers' own cache with `tokens` random tokens."""
    from transformers import DynamicCache

    cache = DynamicCache(config=bench.shape.config())
    size = 1, bench.shape.kv_heads, tokens, bench.shape.head_dim
    for layer in range(bench.shape.layers):
        keys, values = (torch.randn(size, dtype=bench.dtype, device=bench.device) for _ in range(2))
        cache.update(keys, values, layer)
    return cache

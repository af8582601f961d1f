"""Peak memory of a prefill of 128k in chunks, against the sum of its parts, and what is left behind.

The parts: weights, what the prefill of one chunk alone takes beyond them, one layer's full keys and values, and the
compressed cache. PyTorch's own count of allocated bytes; on a CPU that of the process.
"""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import planned, uneven_plan
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.models.devices import PeakMemory
from headprobe.models.releases import with_cache


def run(bench: Bench, note: Any) -> None:
    shape = bench.shape
    weights = sum(weight.nbytes for weight in bench.model.parameters())
    _, chunk, _ = prefill(bench, shape.chunk)
    bench.free()
    cache, peak, left = prefill(bench, shape.long)
    full = shape.kv_bytes(shape.long, cache.stores[0].keys.element_size())
    held = cache.nbytes + cache.bookkeeping_nbytes
    note("bytes", {
        "weights": weights, "one_chunk_beyond_weights": chunk, "one_layers_full_kv": full // shape.layers,
        "cache": held, "peak_beyond_weights": peak, "left_beyond_weights": left, "full_cache": full,
    })  # fmt: skip
    if chunk is None or peak is None:
        note("remark", "the system does not report the peak")
        return
    bench.record.target("peak_over_parts", (weights + peak) / (weights + chunk + full // shape.layers + held))
    if left is not None:
        bench.record.target("left_over_full", (left - held) / full)


def prefill(bench: Bench, tokens: int) -> tuple[RaggedCache, int | None, int | None]:
    """The cache, the peak beyond what was there before, and on a GPU what is left beyond it afterwards."""
    plan = uneven_plan(bench.shape, bench.shape.budget)
    ids = bench.tokens(tokens)
    peak = PeakMemory(bench.device)
    before = torch.cuda.memory_allocated(bench.device) if bench.on_gpu else 0
    with planned(bench, plan, bench.shape.chunk) as session:
        cache = session.new_cache()
        peak.start()
        bench.model(input_ids=ids, **with_cache(bench.model, cache), use_cache=True, logits_to_keep=1)
        most = peak.bytes()
        session.reset()
    left = torch.cuda.memory_allocated(bench.device) - before if bench.on_gpu else None
    return cache, most, left

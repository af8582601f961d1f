"""The largest batch at 32k that fits: full caches, and caches of 1,024 entries that were joined.

The full batch is laid out at once. Of the compressed ones the last is really prefilled while the others are held; then
all are joined and decoded together. Ten times the full batch is tried first, since that is the target.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import filled_cache, full_plan, planned, uneven_plan
from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.generation import join
from headprobe.compression.ragged_cache import DEFAULT_SLACK, RaggedCache
from headprobe.models.devices import is_out_of_memory

TOKENS = 9  # of each answer
ON_CPU = 2, 4  # sequences, where memory is not the limit


def run(bench: Bench, note: Any) -> None:
    shape = bench.shape
    each = shape.kv_bytes(shape.short + DEFAULT_SLACK, torch.empty(0, dtype=bench.dtype).element_size())
    _ = bench.model
    bench.free()
    guess = int(torch.cuda.mem_get_info(bench.device)[0] // each) if bench.on_gpu else ON_CPU[0]
    full = next((size for size in range(guess, 0, -1) if fits(bench, partial(decode_full, bench, size))), 0)
    note("full", {"batch": full, "bytes_each": each})
    if not full:
        raise RuntimeError(f"not even one full cache of {each} bytes fits")
    sizes = [factor * full for factor in (10, 15, 20, 25, 30)] if bench.on_gpu else [ON_CPU[1]]
    largest = 0
    for size in sizes:
        if largest and bench.seconds_left < 60 and bench.on_gpu:
            note("stopped", f"batches above {largest} were not tried: {bench.seconds_left:.0f} s are left")
            break
        if not fits(bench, partial(decode_joined, bench, size)):
            break
        largest = size
        note("compressed", {"batch": largest, "over_full": largest / full})
        bench.record.target("batch_over_full", largest / full)
    if not largest:
        note("compressed", {"batch": None, "too_large": sizes[0]})


def fits(bench: Bench, work: Callable[[], None]) -> bool:
    """Whether `work` ends without running out of memory."""
    try:
        work()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        fitted = False
    else:
        fitted = True
    bench.free()
    return fitted


def decode_full(bench: Bench, batch: int) -> None:
    """A few tokens of so many sequences on full caches."""
    plan = full_plan(bench.shape)
    with planned(bench, plan) as session:
        decode(bench, filled_cache(bench, plan, session.kernel, bench.shape.short, batch, DEFAULT_SLACK))


def decode_joined(bench: Bench, batch: int) -> None:
    """As a server would: caches come one after another, are joined, and go on together."""
    shape = bench.shape
    plan = uneven_plan(shape, shape.large_budget)
    with planned(bench, plan, shape.chunk) as session:
        parts = [filled_cache(bench, plan, session.kernel, shape.short, 1, DEFAULT_SLACK) for _ in range(batch - 1)]
        last = session.new_cache()
        run_step(bench.model, last, bench.tokens(shape.short))
        session.reset()
        cache = join([*parts, last])
        del parts, last
        decode(bench, cache)


def decode(bench: Bench, cache: RaggedCache) -> None:
    """A few tokens by the captured loop; the model must be in a session."""
    logits = torch.randn(len(cache.pads), bench.shape.vocabulary, device=bench.device)
    Decoder(bench.model, cache, graphs=bench.on_gpu).run(logits, TOKENS)

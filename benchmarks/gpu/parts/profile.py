"""Which kernels take the time of a captured decode step, at batch 1 and 16.

Times are the device's own, by torch's profiler, which makes everything a little slower: they explain the other parts'
numbers and are not compared with them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import filled_cache, planned, uneven_plan
from benchmarks.gpu.steps import SLACK
from headprobe.compression.decoding import Decoder

SHOWN = 24  # kernels by time; the rest in one line
STEPS = 8


def run(bench: Bench, note: Any) -> None:
    for batch in (1, bench.shape.batch):
        note(f"decode_batch_{batch}", decode_step(bench, batch))
        note(f"decode_batch_{batch}_layers_not_fused", decode_step(bench, batch, fused=False))
        bench.free()


def decode_step(bench: Bench, batch: int, *, fused: bool = True) -> dict[str, Any]:
    """A step of the captured loop at the shape's budget, by the kernel that is chosen first."""
    plan = uneven_plan(bench.shape, bench.shape.budget)
    with planned(bench, plan) as session:
        cache = filled_cache(bench, plan, session.kernel, bench.shape.short, batch, SLACK)
        decoder = Decoder(bench.model, cache, graphs=bench.on_gpu, fused=fused)
        logits = torch.randn(batch, bench.shape.vocabulary, device=bench.device)
        decoder.run(logits, 1 + STEPS)
        found = by_kernel(bench, lambda: decoder.run(logits, 1 + STEPS), STEPS)
    return {"kernel": session.kernel.name, "captured": decoder.uses_graph} | found


def by_kernel(bench: Bench, work: Callable[[], object], times: int) -> dict[str, Any]:
    """Microseconds and calls of each kernel in one of the `times` that `work` does."""
    work()
    bench.wait()
    activity = ProfilerActivity.CUDA if bench.on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as seen:
        work()
        bench.wait()
    attribute = "self_device_time_total" if bench.on_gpu else "self_cpu_time_total"
    rows = sorted(((getattr(row, attribute), row.count, row.key) for row in seen.key_averages()), reverse=True)
    rows = [row for row in rows if row[0] > 0]
    shown = [[round(us / times, 2), round(count / times, 2), name[:120]] for us, count, name in rows[:SHOWN]]
    rest = rows[SHOWN:]
    return {
        "us": round(sum(us for us, _, _ in rows) / times, 1),
        "calls": round(sum(count for _, count, _ in rows) / times, 1),
        "kernels_us_calls_name": shown,
        "others": {"us": round(sum(row[0] for row in rest) / times, 1), "kinds": len(rest)},
    }

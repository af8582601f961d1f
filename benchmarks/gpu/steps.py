"""How long a decode step takes, in the captured loop that `headprobe compress` uses."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import filled_cache, full_plan, planned, set_kernel, uneven_plan, used_bytes
from headprobe.compression.decoding import Decoder
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.ragged_cache import RaggedCache

WARM, STEPS, REPEATS = 16, 32, 3
SLACK = WARM + STEPS * REPEATS + 16  # for the tokens of one kernel: a cache that grows is captured anew


def seconds_per_step(bench: Bench, cache: RaggedCache, *, fused: bool = True) -> dict[str, Any]:
    """Median seconds over a few runs of the loop; why it was not captured or its layers not fused (None: they were)."""
    decoder = Decoder(bench.model, cache, graphs=bench.on_gpu, fused=fused)
    steps = STEPS if bench.on_gpu else 2
    logits = torch.randn(len(cache.pads), bench.shape.vocabulary, device=bench.device)
    with planned(bench, cache.plan):
        decoder.run(logits, 1 + (WARM if bench.on_gpu else 1))
        seconds = bench.seconds(lambda: decoder.run(logits, 1 + steps), REPEATS)
    return {"seconds": seconds / steps, "not_captured": decoder.graph_refusal, "not_fused": decoder.fused_refusal}


def time_plan(bench: Bench, plan: CompressionPlan, tokens: int, batch: int) -> dict[str, Any]:
    """A step on a filled cache by each kernel; the fastest one's seconds as `seconds`, and beside them those of the
    model's own layers."""
    kernels = bench.fast_kernels()
    cache = filled_cache(bench, plan, kernels[0], tokens, batch, SLACK * (len(kernels) + 1))
    kept = used_bytes(cache)
    found: dict[str, Any] = {"kv_bytes": kept, "by_kernel": {}}
    for kernel in kernels:
        set_kernel(cache, kernel)
        try:
            found["by_kernel"][kernel.name] = seconds_per_step(bench, cache)
        except Exception as error:  # one kernel's fault must not hide the others
            found["by_kernel"][kernel.name] = {"error": bench.fault(error)}
    timed = {name: row["seconds"] for name, row in found["by_kernel"].items() if "seconds" in row}
    if not timed:
        raise RuntimeError(f"no kernel ran: {found['by_kernel']}")
    best = min(timed, key=timed.__getitem__)
    set_kernel(cache, next(kernel for kernel in kernels if kernel.name == best))
    found["layers_not_fused"] = seconds_per_step(bench, cache, fused=False)
    floor = (bench.weights_read() + kept) / bench.bandwidth()
    return found | {"kernel": best, "seconds": timed[best], "floor_seconds": floor, "over_floor": timed[best] / floor}


def compare(bench: Bench, note: Any, tokens: int, batch: int) -> tuple[dict[str, Any], float]:
    """Ours at the shape's budget and the full cache, in the same loop, each by its fastest kernel."""
    ours = time_plan(bench, uneven_plan(bench.shape, bench.shape.budget), tokens, batch)
    note("compressed", ours)
    bench.free()
    full = time_plan(bench, full_plan(bench.shape), tokens, batch)
    note("full", full)
    bench.free()
    ratio = full["seconds"] / ours["seconds"]
    note("full_over_compressed", ratio)
    return ours, ratio

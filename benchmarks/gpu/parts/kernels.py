"""The ragged kernel alone, on budgets as uneven as real scores give: what share of copy bandwidth it reads at.

One pass goes over the stores of all layers, as a decode step does, so that they do not stay in the device's cache. The
target is held against a batch whose keys and values are about 2 GiB over all layers: much less is read in the time that
a launch takes. Batches of 1 and 16 are measured beside it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import filled_store, uneven_plan
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.choice import MEASURED_FILE, Kernel, device_name
from headprobe.compression.ragged_store import RaggedStore
from headprobe.scores.files import write_atomically


def run(bench: Bench, note: Any) -> None:
    shape = bench.shape
    bench.bandwidth()  # without it nothing here has a share
    shares: dict[str, float] = {}
    for budget in shape.uneven_budgets:
        capacities = uneven_plan(shape, budget).capacities(shape.short)
        longest, middle = int(capacities.max()), float(np.median(capacities))
        note(f"budget_{budget}", {"mean": float(capacities.mean()), "median": middle, "maximum": longest})
        one = shape.kv_bytes(budget, torch.empty(0, dtype=bench.dtype).element_size())
        filling = max(1, shape.store_bytes // one)
        for batch in sorted({1, shape.batch, filling}):
            stores = [filled_store(bench, np.tile(row, batch), batch, slack=64) for row in capacities]
            found = {kernel.name: timed_or_fault(bench, kernel, stores) for kernel in bench.fast_kernels()}
            note(f"budget_{budget}_batch_{batch}", found)
            if batch == filling:
                for name, row in found.items():
                    if "error" in row:  # too slow to count, and never the fastest
                        row = {"share_of_copy_bandwidth": 0.0}
                    shares[name] = min(shares.get(name, 1e9), row["share_of_copy_bandwidth"])
            del stores
            bench.free()
    note("shares", shares)
    if not any(shares.values()):
        raise RuntimeError("no kernel ran on all stores")
    bench.record.target("kernel_share", max(shares.values()))
    if bench.record.counts:
        _write_measured(bench, {name: share for name, share in shares.items() if share})


def timed_or_fault(bench: Bench, kernel: Kernel, stores: list[RaggedStore]) -> dict[str, Any]:
    """What `timed` gives, or the error of a kernel that does not run: its fault must not cost the others."""
    try:
        return dict(timed(bench, kernel, stores))
    except Exception as error:
        return {"error": bench.fault(error)}


def timed(bench: Bench, kernel: Kernel, stores: list[RaggedStore]) -> dict[str, float]:
    """Microseconds a layer, and the share of copy bandwidth at which entries in use are read."""
    shape = bench.shape
    attention = AttentionShape(shape.head_dim**-0.5)
    query = torch.randn(stores[0].batch, shape.heads, 1, shape.head_dim, dtype=bench.dtype, device=bench.device)

    def once() -> None:
        for store in stores:
            kernel.attend(query, store, attention)

    work = bench.replayed(once)
    seconds = bench.seconds(work, repeats=7)
    used = sum(int(store.lengths.sum()) * 2 * shape.head_dim * store.keys.element_size() for store in stores)
    return {
        "us_per_layer": round(1e6 * seconds / len(stores), 2),
        "bytes": used,
        "share_of_copy_bandwidth": round(used / seconds / bench.bandwidth(), 4),
    }


def _write_measured(bench: Bench, shares: dict[str, float]) -> None:
    """Beside the kernels, where the automatic choice reads it."""
    known = json.loads(MEASURED_FILE.read_text(encoding="utf-8")) if MEASURED_FILE.exists() else {}
    known[device_name(bench.device)] = shares
    write_atomically(MEASURED_FILE, (json.dumps(known, indent=2, sort_keys=True) + "\n").encode(), overwrite=True)

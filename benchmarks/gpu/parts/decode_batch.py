"""Decoding 16 sequences at 32k together: over the floor, and against the full cache in the same loop."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steps import compare


def run(bench: Bench, note: Any) -> None:
    ours, ratio = compare(bench, note, bench.shape.short, bench.shape.batch)
    bench.record.target("batch_step_over_floor", ours["over_floor"])
    bench.record.target("full_over_batch_step", ratio)

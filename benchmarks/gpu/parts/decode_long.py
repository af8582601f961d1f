"""Decoding one sequence at 128k, against the full cache in the same loop."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.steps import compare


def run(bench: Bench, note: Any) -> None:
    _, ratio = compare(bench, note, bench.shape.long, 1)
    bench.record.target("full_over_step_128k", ratio)

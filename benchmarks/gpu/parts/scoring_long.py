"""One trial of 128k, scored: that it runs, how long it takes and how much memory."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts.scoring import prompt, score
from headprobe.models.devices import PeakMemory


def run(bench: Bench, note: Any) -> None:
    _ = bench.model
    bench.record.target("score_128k_runs", 0.0)
    peak = PeakMemory(bench.device)
    peak.start()
    given = prompt(bench, bench.shape.long, 0.5)
    found: list[Any] = []
    seconds = bench.seconds(lambda: found.extend(score(bench, [given])))
    scores = found[0].scores["r2"]
    note("trial", {"tokens": len(given.input_ids), "seconds": seconds, "peak_beyond_weights": peak.bytes(),
                   "scores_sum": float(scores.sum())})  # fmt: skip
    bench.record.target("score_128k_runs", 1.0)

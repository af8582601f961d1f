"""What is to be reached: ratios within one run on one H200, with Llama-3-8B's shape in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Goal:
    """`value` is to be at most (or at least) `limit`."""

    name: str
    number: int
    what: str
    limit: float
    at_most: bool = True

    def verdict(self, value: float | None, counts: bool) -> dict[str, Any]:
        """The record of a measured `value`; `met` is null where nothing was measured or the run does not count."""
        met = None
        if value is not None and counts:
            met = value <= self.limit if self.at_most else value >= self.limit
        words = "at most" if self.at_most else "at least"
        return {"target": self.number, "name": self.name, "what": self.what, "limit": f"{words} {self.limit:g}",
                "value": value, "met": met}  # fmt: skip


TARGETS = (
    Goal("step_over_floor", 1, "decode step at budget 256, batch 1, 32k, over the floor", 1.25),
    Goal("batch_step_over_floor", 1, "the same at batch 16", 1.4),
    Goal("full_over_step_32k", 2, "captured full cache over ours, batch 1, 32k, per token", 1.2, False),
    Goal("full_over_step_128k", 2, "the same at 128k", 1.8, False),
    Goal("full_over_batch_step", 2, "the same at batch 16, 32k", 4.0, False),
    Goal("generate_over_step", 2, "stock generate() over ours, batch 1, 32k, per token", 5.0, False),
    Goal("snapkv_share", 3, "share of compression in prefill at 32k, snapkv", 0.05),
    Goal("headkv_share", 3, "the same, headkv-r2", 0.05),
    Goal("accumulated_share", 3, "the same, h2o (accumulated attention)", 0.6),
    Goal("peak_over_parts", 4, "peak memory of a prefill of 128k over the sum of its parts", 1.1),
    Goal("left_over_full", 4, "bytes left behind beside the cache, over the full cache's", 0.01),
    Goal("batch_over_full", 5, "largest batch at 32k, budget 1024, over the full cache's", 10.0, False),
    Goal("score_over_prefill", 6, "score of 100 trials up to 32k over plain prefill", 0.65),
    Goal("score_128k_runs", 6, "a trial of 128k is scored (1: it is)", 1.0, False),
    Goal("kernel_share", 7, "copy bandwidth that the ragged kernel reaches on uneven budgets", 0.7, False),
)

"""What is measured on: Llama-3-8B's shape with random weights, or a tiny one that shows on a CPU that all parts run."""

from __future__ import annotations

from dataclasses import dataclass

from headprobe.evaluation.costs.shapes import SHAPES as MODEL_SHAPES
from headprobe.evaluation.costs.shapes import ModelShape


@dataclass(frozen=True, kw_only=True)
class Shape(ModelShape):
    """A Llama's sizes, and how much is asked of it: contexts, batches and chunks in tokens, budgets in entries."""

    short: int
    long: int
    budget: int
    large_budget: int
    uneven_budgets: tuple[int, ...]
    batch: int
    chunk: int
    score_lengths: int
    score_depths: int
    store_bytes: int  # of all layers' keys and values where a kernel is timed alone
    needle_prompts: int  # of the bundled model


LLAMA3_8B = Shape(
    **vars(MODEL_SHAPES["llama3-8b"]), short=32768, long=131072, budget=256, large_budget=1024,
    uneven_budgets=(128, 1024), batch=16, chunk=8192, score_lengths=10, score_depths=10, store_bytes=2 << 30,
    needle_prompts=20,
)  # fmt: skip
TINY = Shape(
    **vars(MODEL_SHAPES["tiny"]), short=256, long=320, budget=24, large_budget=40, uneven_budgets=(24,), batch=3,
    chunk=64, score_lengths=2, score_depths=2, store_bytes=1 << 18, needle_prompts=1,
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (LLAMA3_8B, TINY)}

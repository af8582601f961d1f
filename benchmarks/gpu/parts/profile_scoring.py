"""Which kernels take the time of scoring, beside those of a plain prefill of the same prompt: ten trials of 32k."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts.profile import by_kernel
from benchmarks.gpu.parts.scoring import plain, prompt, score


def run(bench: Bench, note: Any) -> None:
    depths = bench.shape.score_depths
    prompts = [prompt(bench, bench.shape.short, i / (depths - 1)) for i in range(depths)]
    note("plain_prefill", by_kernel(bench, partial(plain, bench, prompts[0]), 1))
    note("a_trial", by_kernel(bench, partial(score, bench, prompts), depths))
    note("a_trial_s", bench.seconds(partial(score, bench, prompts)) / depths)

"""Decoding one sequence at 32k: over the floor, against the full cache in the same loop, against stock `generate()`.

Caches are filled with random entries; a step's time does not depend on them.
"""

from __future__ import annotations

import time
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.filled import stock_cache
from benchmarks.gpu.steps import compare
from headprobe.models.releases import generating_with


def run(bench: Bench, note: Any) -> None:
    ours, ratio = compare(bench, note, bench.shape.short, 1)
    bench.record.target("step_over_floor", ours["over_floor"])
    bench.record.target("full_over_step_32k", ratio)
    stock = stock_seconds(bench, bench.shape.short)
    note("stock_generate", {"seconds": stock})
    bench.record.target("generate_over_step", stock / ours["seconds"])


def stock_seconds(bench: Bench, tokens: int) -> float:
    """Seconds a token of `model.generate()` on its own cache: of a long answer less a short one."""
    cache = stock_cache(bench, tokens)
    few, many = (4, 20) if bench.on_gpu else (2, 4)

    def answer(count: int) -> float:
        ids = bench.tokens(cache.get_seq_length() + 1)
        bench.wait()
        begin = time.perf_counter()
        bench.model.generate(
            ids, attention_mask=ids.new_ones(ids.shape), **generating_with(cache), max_new_tokens=count,
            min_new_tokens=count, do_sample=False, pad_token_id=0,
        )  # fmt: skip
        bench.wait()
        return time.perf_counter() - begin

    answer(few)
    short = answer(few)
    return (answer(many) - short) / (many - few)

"""Which kernels take the time of a prefill of 32k, as transformers does it and under three policies."""

from __future__ import annotations

from functools import partial
from typing import Any

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.parts.prefill import compressed, plain
from benchmarks.gpu.parts.profile import by_kernel

POLICIES = ("snapkv", "headkv-r2", "h2o")


def run(bench: Bench, note: Any) -> None:
    ids = bench.tokens(bench.shape.short)
    note("stock", by_kernel(bench, partial(plain, bench, ids), 1))
    for policy in POLICIES:
        note(policy, by_kernel(bench, partial(compressed, bench, policy, ids), 1))
        bench.free()

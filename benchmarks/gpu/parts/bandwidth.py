"""Copy bandwidth, with which everything else is compared: bytes read and bytes written by a large copy, a second."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.gpu.bench import Bench


def run(bench: Bench, note: Any) -> None:
    size = (4 << 30) if bench.on_gpu else (1 << 24)
    source = torch.ones(size, dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    target.copy_(source)
    seconds = bench.seconds(lambda: target.copy_(source), repeats=9)
    bench.copy_bandwidth = 2 * size / seconds
    note("bytes_per_s", bench.copy_bandwidth)

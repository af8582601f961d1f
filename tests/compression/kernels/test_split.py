"""The Triton kernel: its numbers in the interpreter, or on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.reference import torch_weigh
from headprobe.compression.kernels.split import Tiling, split_weigh
from headprobe.compression.ragged_store import RaggedStore, Segment
from tests.compression.kernels.split_cases import CASES, errors
from tests.compression.kernels.stores import query_for, random_store

ROOT = Path(__file__).parents[3]
pytest.importorskip("triton")


def run_module(name: str, **settings: str) -> Any:
    """What a module prints, as JSON, in a process of its own."""
    command = [sys.executable, "-W", "error", "-m", f"tests.compression.kernels.{name}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted() -> Any:
    return run_module("split_cases", TRITON_INTERPRET="1")


@pytest.mark.parametrize("case", list(CASES))
def test_interpreted_it_equals_plain_loops_within_the_bound_of_its_type(interpreted: Any, case: str) -> None:
    assert interpreted["errors"][case] <= 1, f"seed {interpreted['seed']}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("key_width", [8, 64, 96, 128, 192, 256])
@pytest.mark.parametrize("value_width", [16, 80, 128, 256])
def test_programs_are_compiled_for_powers_of_two(dtype: torch.dtype, key_width: int, value_width: int) -> None:
    """Of at least the 16 that a tensor core takes, and two tiles of at most 32 KiB (or 16 entries) in flight."""
    nothing = Segment(torch.empty(1, key_width, dtype=dtype), torch.empty(1, value_width, dtype=dtype))
    tiling = Tiling.of(RaggedStore([nothing], 1, [1000], 1), rows=5)
    sizes = tiling.tile, tiling.rows, tiling.key_pad, tiling.value_pad
    assert all(size >= 16 and size.bit_count() == 1 for size in sizes)
    assert (tiling.key_pad >= key_width, tiling.value_pad >= value_width) == (True, True)
    assert tiling.tile == 16 or tiling.tile * (tiling.key_pad + tiling.value_pad) * dtype.itemsize <= 1 << 15


@pytest.mark.gpu
def test_on_a_gpu_it_equals_plain_loops_within_the_bound_of_its_type() -> None:
    strict = torch.are_deterministic_algorithms_enabled()
    try:
        beyond = {name: error for name, error in errors("cuda").items() if error > 1}
    finally:
        torch.use_deterministic_algorithms(strict)
    assert beyond == {}


@pytest.mark.gpu
def test_a_captured_step_follows_the_lengths_on_the_device() -> None:
    store = random_store([3, 200, 64, 65], 1, dim=64, slack=8, device="cuda")
    query, new = query_for(store, 2, 1, 64).cuda(), torch.randn(1, 4, 1, 64, device="cuda")
    shape = AttentionShape(0.1)
    split_weigh(query, store, shape)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, weights = split_weigh(query, store, shape)
    for _ in range(3):
        store.append(new, new)
        graph.replay()
        wanted, wanted_weights = torch_weigh(query, store, shape)
        torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(weights, wanted_weights, atol=1e-5, rtol=1e-5)

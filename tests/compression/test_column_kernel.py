"""The fused column sums against the plain ones, in Triton's interpreter: it must be switched on before triton loads."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import headprobe

pytest.importorskip("triton")

CASES = """
import torch
from headprobe.compression.kernels.columns import fused_column_sums
from headprobe.compression.importance import AttentionShape, column_sums
from tests.compression.kernels.interpreter import mend_interpreter

mend_interpreter()
half, bf16, single = torch.float16, torch.bfloat16, torch.float32
for heads, groups, queries, keys, width, dtype, softcap, with_sinks in (
    (4, 2, 37, 37, 16, single, None, False),
    (3, 1, 5, 130, 80, single, 2.0, True),
    (8, 1, 33, 64, 96, half, None, True),
    (2, 2, 1, 3, 256, half, None, False),
    (4, 4, 129, 300, 64, bf16, 3.0, False),
):
    query, key = (torch.randn(n, t, width).to(dtype) for n, t in ((heads, queries), (groups, keys)))
    shape = AttentionShape(0.2, softcap, torch.randn(heads) if with_sinks else None)
    given = fused_column_sums(query.transpose(0, 1).contiguous().transpose(0, 1), key, *vars(shape).values())
    wanted = column_sums(query.float(), key.float(), shape)
    assert wanted.sum() > 0.5 * queries * groups * (0.1 if with_sinks else 1.0)
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=1e-5)
print("equal")
"""


def test_fused_sums_equal_plain_ones() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(headprobe.__file__).parents[1])}
    run = subprocess.run([sys.executable, "-c", CASES], env=environment, capture_output=True, text=True, check=False)
    assert (run.stdout, run.returncode) == ("equal\n", 0), run.stderr[-2000:]

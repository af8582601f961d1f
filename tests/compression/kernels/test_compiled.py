"""That Triton compiles what would be launched, for the GPUs people have; its interpreter accepts more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
SHARED = {"h100": 227 << 10, "a100": 163 << 10, "rtx4090": 99 << 10}  # bytes that one program may take
PROGRAMS = {
    "attend_split", "join_splits", "weigh_split", "_row_kernel", "_column_kernel", "project", "rotate_and_write",
}  # fmt: skip
pytest.importorskip("triton")


def compiled(calls: str, card: str, cache: Path) -> Any:
    """What `compiled` prints, in a process of its own: the compiler is another one than the interpreter."""
    command = [sys.executable, "-W", "error", "-m", "tests.compression.kernels.compiled", calls, card]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(cache)}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def check(launches: Any, shared: int) -> None:
    assert {launch["program"] for launch in launches} == PROGRAMS
    for launch in launches:
        assert launch["shared"] <= shared, launch
        assert launch["registers"] * launch["warps"] * 32 <= 1 << 16, launch
        # products of float32 in full precision go by no tensor core and take many registers; half precision must not
        assert launch["spilled"] == 0 or ("float32" in launch["variant"] and launch["spilled"] <= 1024), launch


def test_what_most_models_launch_compiles_for_an_h100(tmp_path: Path) -> None:
    check(compiled("few", "h100", tmp_path), SHARED["h100"])


@pytest.mark.slow
@pytest.mark.parametrize("card", list(SHARED))
def test_every_number_format_and_width_compiles_and_fits(tmp_path: Path, card: str) -> None:
    check(compiled("corners", card, tmp_path), SHARED[card])

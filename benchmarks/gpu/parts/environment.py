"""Device, versions, driver and date."""

from __future__ import annotations

import importlib.metadata
import subprocess
from typing import Any

import torch

from benchmarks.environment import device_name, environment
from benchmarks.gpu.bench import Bench
from headprobe.compression.kernels.choice import KERNELS


def run(bench: Bench, note: Any) -> None:
    found = environment() | {"device": device_name() if bench.on_gpu else "cpu", "triton": _version("triton")}
    found |= {"flash-attn": _version("flash-attn"), "flash-attn-4": _version("flash-attn-4")}
    if bench.on_gpu:
        properties = torch.cuda.get_device_properties(bench.device)
        found |= {
            "cuda": torch.version.cuda,
            "driver": _driver(),
            "capability": f"{properties.major}.{properties.minor}",
            "memory_bytes": properties.total_memory,
        }
    note("environment", found)
    note("kernels", {kernel.name: kernel.refuses(bench.needs()) or "usable" for kernel in KERNELS})


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.split("\n")[0]

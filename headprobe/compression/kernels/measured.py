"""How fast kernels were seen to be: `measured.json` beside this file, written by `python -m benchmarks.gpu`.

    {"<device name as CUDA gives it>": {"<kernel>": <share of copy bandwidth while reading uneven segments>, ...}, ...}

Without the file nothing has been measured.
"""

from __future__ import annotations

import json
from pathlib import Path

MEASURED_FILE = Path(__file__).with_name("measured.json")


def measured_shares(device_name: str | None) -> dict[str, float]:
    """Share of copy bandwidth by kernel name, empty where nothing was measured on such a device."""
    if device_name is None or not MEASURED_FILE.exists():
        return {}
    shares: dict[str, float] = json.loads(MEASURED_FILE.read_text(encoding="utf-8")).get(device_name, {})
    return shares

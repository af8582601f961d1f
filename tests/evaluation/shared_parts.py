"""Small evaluations that are run in parts, and what of their files does not differ from run to run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NEEDLES = (
    "eval", "needles", "--lengths", "160,200", "--depths", "2", "--budgets", "16", "--policies", "full,snapkv",
    "--baselines", "none",
)  # fmt: skip
TASK = ("eval", "ruler:vt", "--limit", "3", "--lengths", "512", "--budgets", "32", "--policies", "full,snapkv")
FILES = {NEEDLES: "trials.jsonl", TASK: "rows.jsonl"}
TIMES = ("ttft_s", "s_per_token", "seconds", "peak_bytes", "stages")


def rows(path: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in path.read_text().splitlines()]


def bare(value: Any) -> Any:
    """JSON without what was timed."""
    if isinstance(value, dict):
        return {key: bare(item) for key, item in value.items() if key not in TIMES}
    return [bare(item) for item in value] if isinstance(value, list) else value

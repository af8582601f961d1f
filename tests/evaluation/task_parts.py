"""A small file of questions, and rows of a task run, made by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headprobe.evaluation.task_trial import MEASURED

CONTEXT = " ".join(
    f"Anna put the {thing} beside the gate." for thing in ("lamp", "boat", "key", "stone", "net", "bell")
)


def write_lines(path: Path, *records: Any) -> Path:
    """JSON lines, or whatever text a record is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [record if isinstance(record, str) else json.dumps(record, ensure_ascii=False) for record in records]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def own_file(path: Path, number: int = 2, **more: Any) -> Path:
    """Questions for the task `jsonl`."""
    records = [
        {"context": f"{CONTEXT} Number {n}.", "question": "Where is the key?", "answers": ["beside the gate"], **more}
        for n in range(number)
    ]
    return write_lines(path, *records)


def row(prompt: str, policy: str, budget: int | None, score: float | None, **more: Any) -> dict[str, Any]:
    """A row of the set that stands before the slash; `score` None: memory ran out."""
    head = {
        "trial": f"{prompt}|{policy}|{budget}", "set": prompt.split("/")[0], "prompt": prompt, "cluster": prompt,
        "policy": policy, "scores": None, "budget": budget, "cut_tokens": 0,
    }  # fmt: skip
    if score is None:
        return head | dict.fromkeys(MEASURED) | {"error": "memory"} | more
    measured: dict[str, Any] = {
        "score": score, "evicts": budget is not None, "kv_entries": 10, "full_kv_entries": 40, "kv_bytes": 120,
        "full_kv_bytes": 900, "ttft_s": 2.0, "s_per_token": 0.5, "seconds": 3.0, "error": None,
    }  # fmt: skip
    return head | measured | more

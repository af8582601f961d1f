"""Rows of a needle grid, made by hand."""

from __future__ import annotations

from typing import Any

from headprobe.evaluation.needle_trial import MEASURED


def row(
    prompt: str,
    policy: str,
    budget: int | None,
    exact: bool | None,
    *,
    scores: str | None = None,
    needle: str | None = None,
    length: int = 256,
    depth: float = 0.0,
    **more: Any,
) -> dict[str, Any]:
    """A row; `exact` None: memory ran out."""
    head = {
        "trial": f"{prompt}|{policy}|{scores}|{budget}", "prompt": prompt, "needle": needle or prompt,
        "length": length, "depth": depth, "policy": policy, "scores": scores, "budget": budget,
    }  # fmt: skip
    if exact is None:
        return head | dict.fromkeys(MEASURED) | {"error": "memory"}
    measured: dict[str, Any] = {
        "exact_match": exact, "answer_f1": float(exact), "chose": "answer" if exact else "distractor",
        "kv_entries": 10, "kv_bytes_asked": 100, "kv_bytes": 120, "full_kv_bytes": 900, "ttft_s": 2.0,
        "s_per_token": 0.5, "error": None,
    }  # fmt: skip
    return head | measured | more


def small_grid() -> tuple[dict[str, Any], ...]:
    """Two prompts, `full`, snapkv at two budgets, headkv-r2 with both baselines; one row is missing its measure."""
    rows = []
    for index, prompt in enumerate(("p", "q")):
        place = {"length": 256 * (index + 1), "depth": 50.0 * index}
        rows += [
            row(prompt, "full", None, True, **place),
            row(prompt, "snapkv", 16, False, **place),
            row(prompt, "snapkv", 64, None if index else True, **place),
            row(prompt, "headkv-r2", 16, True, scores="real", **place),
            row(prompt, "headkv-r2", 16, False, scores="random", **place),
            row(prompt, "headkv-r2", 16, bool(index), scores="shuffled", **place),
        ]
    return tuple(rows)

"""Rows that come back from a grid's journal: what a trial writes goes through, everything else is told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from headprobe.evaluation.needle_folder import RowCheck
from headprobe.evaluation.needle_grid import NeedleGrid
from headprobe.evaluation.needle_trial import MEASURED

HEAD = {"trial": "p|snapkv|16", "prompt": "p", "length": 256, "depth": 50.0, "budget": 16, "query_agnostic": False}
GOOD = HEAD | {
    "response": "Yes.", "exact_match": True, "answer_f1": 1.0, "chose": "answer", "new_tokens": 3, "kv_entries": 64,
    "kv_entries_asked": 64, "kv_bytes": 900, "kv_bytes_asked": 800, "full_kv_bytes": 9000, "peak_bytes": None,
    "ttft_s": 0.1, "s_per_token": None, "kernel": "torch", "error": None,
}  # fmt: skip
TRIAL = SimpleNamespace(id="p|snapkv|16", head=lambda: dict(HEAD))
CHECK = RowCheck(cast("NeedleGrid", SimpleNamespace(trials=lambda: [TRIAL])))


def test_what_a_trial_writes_goes_through() -> None:
    CHECK(GOOD)
    CHECK(GOOD | {"peak_bytes": 12, "s_per_token": 0.5})
    CHECK(HEAD | dict.fromkeys(MEASURED) | {"error": "out of memory"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trial": "q|snapkv|16"}, "the grid has no such trial"),
        ({"length": 512}, "its length is 512, the grid has 256"),
        ({"query_agnostic": 0}, "its query_agnostic is 0, the grid has False"),
        ({"exact_match": None}, "its exact_match is None, need one of True, False"),
        ({"answer_f1": float("nan")}, "its answer_f1 is nan, need a number from 0 to 1"),
        ({"kv_bytes": -1}, "its kv_bytes is -1, need a whole number of at least 0"),
        ({"ttft_s": "fast"}, "its ttft_s is 'fast', need a number of at least 0"),
        ({"peak_bytes": 1.5}, "its peak_bytes is 1.5, need a whole number of at least 0"),
        ({"s_per_token": float("inf")}, "its s_per_token is inf, need a number of at least 0"),
        ({"error": 5}, "its error is 5, need a text"),
        ({"error": "out of memory"}, "its response is 'Yes.', need one of None"),
    ],
)
def test_what_a_trial_never_writes_is_told(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        CHECK(GOOD | changes)
    assert told in str(caught.value)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "trial"])
def test_a_missing_field_is_told(name: str) -> None:
    with pytest.raises(ValueError, match=f"the field '{name}' is missing"):
        CHECK({key: value for key, value in GOOD.items() if key != name})

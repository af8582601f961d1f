"""Records that come back from a journal: what a run writes goes through, everything else is told."""

from __future__ import annotations

from typing import Any

import pytest

from headprobe.profiling.record_check import RecordCheck

CHECK = RecordCheck({"t1", "t2"}, ("r2", "value"), (2, 3))
TABLE = [[0.0, 0.5, 1], [0.25, -0.5, 0.0]]


def record(**changes: Any) -> dict[str, Any]:
    good = {
        "trial": "t1", "response": "Ada keeps bees.", "f1": 1.0, "rouge1_recall": 1, "chose": "answer", "num_steps": 4,
        "deciding_words": 0.5, "num_read": 4, "scores": {"r2": TABLE, "value": TABLE},
    }  # fmt: skip
    made = good | changes
    return {name: value for name, value in made.items() if value is not ...}


def refusal(given: dict[str, Any]) -> str | None:
    """What the check says against a record; None where it lets it through."""
    try:
        CHECK(given)
    except ValueError as error:
        return str(error)
    return None


def test_what_a_run_writes_goes_through() -> None:
    assert refusal(record()) is None
    assert refusal({"trial": "t2", "skipped": "out of memory"}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"scores": ...}, "the field 'scores' is missing"),
        ({"response": ...}, "the field 'response' is missing"),
        ({"chose": ...}, "the field 'chose' is missing"),
        ({"trial": "t9"}, "the plan has no such trial"),
        ({"response": None}, "its response is None, need a text"),
        ({"f1": "1"}, "its f1 is '1', need a number from 0 to 1"),
        ({"f1": 1.5}, "its f1 is 1.5, need a number from 0 to 1"),
        ({"f1": float("nan")}, "its f1 is nan, need a number from 0 to 1"),
        ({"f1": True}, "its f1 is True, need a number from 0 to 1"),
        ({"chose": "both"}, "its chose is 'both', need one of answer, distractor, other"),
        ({"chose": ["answer"]}, "its chose is ['answer'], need one of answer, distractor, other"),
        ({"num_steps": 0}, "its num_steps is 0, need a whole number of at least 1"),
        ({"num_steps": 2.0}, "its num_steps is 2.0, need a whole number of at least 1"),
        ({"deciding_words": 2}, "its deciding_words is 2, need a number from 0 to 1"),
        ({"num_read": 3}, "its num_read is 3, need a whole number of at least 4"),
        ({"num_read": ...}, "the field 'num_read' is missing"),
        ({"scores": []}, "its scores by r2 are no table of 2 layers x 3 heads"),
        ({"scores": {"r2": TABLE}}, "its scores by value are no table of 2 layers x 3 heads"),
        ({"scores": {"r2": TABLE, "value": TABLE[:1]}}, "its scores by value are no table of 2 layers x 3 heads"),
        ({"scores": {"r2": TABLE, "value": [[0, 0], [0, 0]]}}, "its scores by value are no table of 2 layers x 3"),
        ({"scores": {"r2": TABLE, "value": [[0, 0, None], [0, 0, 0]]}}, "its scores by value hold None, need finite"),
        ({"scores": {"r2": TABLE, "value": [[0, 0, float("inf")], [0, 0, 0]]}}, "hold inf, need finite numbers"),
        ({"skipped": 3}, "its skipped is 3, need a text"),
    ],
)
def test_what_a_run_never_writes_is_told(changes: dict[str, Any], told: str) -> None:
    assert told in str(refusal(record(**changes)))

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from headprobe.errors import OptionError
from headprobe.profiling.run import ScoreOptions
from headprobe.profiling.steps import ANSWER_STEPS, PUBLISHED_STEPS, step_rule


@pytest.mark.parametrize(
    ("rule", "answer", "room", "scored", "read"),
    [
        (ANSWER_STEPS, 10, 1000, 10, 20),
        (ANSWER_STEPS, 10, 13, 10, 13),
        (ANSWER_STEPS, 10, 4, 10, 10),
        (PUBLISHED_STEPS, 10, 1000, 50, 50),
        (PUBLISHED_STEPS, 60, 1000, 50, 50),
        (PUBLISHED_STEPS, 10, 13, 13, 13),
        (PUBLISHED_STEPS, 10, 0, 1, 1),
    ],
)
def test_steps_that_are_scored_and_read(rule: Any, answer: int, room: int, scored: int, read: int) -> None:
    assert (rule.scored(answer, room), rule.read(answer, room)) == (scored, read)


def test_published_steps_are_those_of_retrieval_alone() -> None:
    assert ScoreOptions(methods=("retrieval",), steps="published").steps == "published"
    with pytest.raises(OptionError, match="are those of the published code of retrieval, not of r2, value"):
        ScoreOptions(methods=("r2", "retrieval", "value"), steps="published")
    with pytest.raises(OptionError, match="steps is 'all', need one of answer, published"):
        ScoreOptions(steps="all")


def test_methods_that_state_no_rule_take_the_answers_length() -> None:
    assert step_rule([SimpleNamespace()]) is ANSWER_STEPS
    with pytest.raises(OptionError, match="different steps cannot share a run: answer, published"):
        step_rule([SimpleNamespace(), SimpleNamespace(steps=PUBLISHED_STEPS)])

"""Seconds by stage: each counted once, whoever is inside whom."""

from __future__ import annotations

import pytest

from headprobe.stages import DECODE, PREFILL, SCORING, WRITE, Stages, move_seconds, stage, stage_record, timed


def ticking(*times: float) -> Stages:
    return Stages(clock=iter(times).__next__)


def test_an_inner_stage_is_taken_out_of_the_outer_one() -> None:
    stages = ticking(0, 1, 3, 4, 9, 10, 10)
    stages.enter(PREFILL)  # from 1
    stages.enter(SCORING)  # 3
    stages.leave()  # 4
    stages.leave()  # 9
    assert stages.record() == {"prefill": 2 + 5, "scoring": 1, "total": 10}


def test_stages_come_in_the_order_of_a_run_and_add_up_over_trials() -> None:
    stages = ticking(0, 0, 1, 1, 3, 3, 6, 6)
    for name in (WRITE, PREFILL, WRITE):
        stages.enter(name)
        stages.leave()
    assert list(stages.record().items()) == [("prefill", 2), ("write", 1 + 3), ("total", 6)]


def test_seconds_are_moved_as_far_as_there_are_any() -> None:
    stages = ticking(0, 0, 5, 5)
    stages.enter(DECODE)
    stages.leave()
    stages.move(2, DECODE, PREFILL)
    stages.move(9, DECODE, PREFILL)
    stages.move(-1, PREFILL, DECODE)
    assert stages.seconds == {"decode": 0, "prefill": 5}


def test_nothing_is_counted_where_nobody_asks() -> None:
    with stage(PREFILL):
        move_seconds(1, PREFILL, DECODE)
    assert stage_record() == {}


def test_a_run_inside_another_one_counts_into_it() -> None:
    with timed() as outer:
        with timed() as inner, stage(WRITE):
            assert inner is outer
        assert set(stage_record()) == {"write", "total"}
    assert stage_record() == {}


def test_a_stage_that_fails_ends() -> None:
    with timed():
        with pytest.raises(ValueError, match="broken"), stage(PREFILL):
            raise ValueError("broken")
        with stage(WRITE):
            pass
        assert list(stage_record()) == ["prefill", "write", "total"]

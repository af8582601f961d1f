from __future__ import annotations

import numpy as np
import pytest

from headprobe.errors import NoPassingTrialError
from headprobe.evaluation.referee.curves import Curve
from headprobe.evaluation.referee.result import RefereeResult, Verdict
from headprobe.pictures.page import figure_bytes, house_style
from headprobe.pictures.referee import referee_figure
from headprobe.scores.uncertainty import Estimate


def verdict(name: str, seed: int, scored: bool = True) -> Verdict:
    mean = np.random.default_rng(seed).random((3, 8)) if scored else None
    area, chance, apart = Estimate(0.5, 0.25, 0.75, 3), Estimate(0.875, 0.75, 1.0, 3), Estimate(0.375, 0.0, 0.5, 3)
    curve = Curve((0, 2, 4), (1.0, 0.5, 0.0), (1.0, 1.0, 0.5), area, chance, apart, (0.875,), "causal")
    reason = None if scored else "the model answered none"
    return Verdict(name, "retrieval", 9, 9, 1.0, (), mean, reason, None, curve if scored else None, {64: 0.75})


def made(*verdicts: Verdict) -> RefereeResult:
    baselines = {"even": {64: 0.5}, "random": {64: 0.25}}
    return RefereeResult("toy/model", {"length": 512}, 4, 3, verdicts, baselines)


def test_each_pair_is_a_square_and_each_detector_a_dot_beside_a_ring() -> None:
    with house_style():
        figure = referee_figure(made(verdict("r2", 0), verdict("mass", 1), verdict("logit", 2)))
    squares, areas, budgets = figure.axes
    assert len(squares.patches) == 6  # three pairs, twice
    assert [label.get_text() for label in squares.get_yticklabels()] == ["r2", "mass", "logit"]
    dots = [line for line in areas.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots[:2]] == [0.875, 0.5]
    bars = [line for line in areas.lines if line.get_linewidth() == 3.5]
    assert [list(line.get_xdata()) for line in bars] == [[0.25, 0.75]] * 3
    marks = [line for line in budgets.lines if line.get_marker() == "s"]
    assert [line.get_xdata()[0] for line in marks] == [0.75] * 3


def test_detectors_that_got_no_answer_are_named_below() -> None:
    with house_style():
        figure = referee_figure(made(verdict("r2", 0), verdict("mass", 1), verdict("contrast", 2, scored=False)))
    told = " ".join(text.get_text() for text in figure.texts)
    assert "no answer, so no score: contrast" in told
    assert "3 prompts of 4 answered with all heads" in told


def test_one_detector_alone_is_drawn_and_none_is_an_error() -> None:
    assert figure_bytes(lambda: referee_figure(made(verdict("r2", 0))), "png").startswith(b"\x89PNG")
    with pytest.raises(NoPassingTrialError, match="no detector scored heads"):
        referee_figure(made(verdict("r2", 0, scored=False)))

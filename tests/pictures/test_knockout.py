from __future__ import annotations

import pytest

from headprobe.errors import OptionError
from headprobe.pictures.knockout import knockout_figure
from headprobe.pictures.page import figure_bytes


def estimate(mean, low=None, high=None):
    return {"mean": mean, "low": low, "high": high, "num": 20}


def result(**changes):
    def sides(answered, text):
        answers = {"answered": estimate(answered, answered - 0.1, answered + 0.1), "answer_loss": estimate(0.5)}
        return answers | {"text_loss": estimate(text)}

    steps = [
        {
            "k": k, "num_off": k,
            "top": sides(0.8 - 0.1 * k, 2.5), "random": sides(0.9, 2.1), "difference": sides(0.1, 0),
            "changes": {"top": sides(-0.1, 0.5), "random": sides(0.0, 0.1)},
            "draws": {"answered": [0.85, 0.95], "text_loss": [2.05, 2.15]},
        }
        for k in (1, 2)
    ]  # fmt: skip
    steps.append({**steps[0], "k": 48, "random": None, "difference": None, "draws": None, "changes": {}})
    whole = sides(0.9, 2.0)
    made = {"mode": "mask", "effect": "causal", "verdict": "The heads matter.", "num_prompts": 20, "draws": 2}
    return {**made, "whole": whole, "steps": steps} | changes


def test_the_curves_are_what_is_left_and_what_plain_text_loses():
    figure = knockout_figure(result(), "toy: answers without its best heads")
    answered, answer, text, _ = figure.axes
    assert answer.lines[0].get_ydata()[0] == 0.5
    top = next(line for line in answered.lines if len(line.get_xdata()) == 4 and line.get_marker() == "o")
    assert top.get_ydata() == pytest.approx([0.9, 0.7, 0.6, 0.7])
    random = next(line for line in answered.lines if len(line.get_xdata()) == 4 and line.get_marker() == "s")
    assert list(random.get_ydata()[:3]) == [0.9, 0.9, 0.9]
    assert random.get_ydata()[3] != random.get_ydata()[3]  # not a number: there was nothing to draw from
    rise = next(line for line in text.lines if line.get_marker() == "o")
    assert list(rise.get_ydata()[:3]) == [0.0, 0.5, 0.5]
    drawn = next(line for line in text.lines if line.get_marker() == "_" and len(line.get_xdata()))
    assert drawn.get_ydata() == pytest.approx([0.05, 0.15])
    assert [tick.get_text() for tick in answered.get_xticklabels()] == ["0", "1", "2", "48"]


def test_the_picture_is_the_same_each_time_and_one_without_steps_is_refused():
    first, second = (
        figure_bytes(lambda: knockout_figure(result(), "</title>\x1b[31m" + 300 * "x"), "png") for _ in range(2)
    )
    assert first == second
    with pytest.raises(OptionError, match="the result has no steps to draw"):
        knockout_figure(result(steps=[]), "toy")

from __future__ import annotations

import pytest

from headprobe.scores.uncertainty import Estimate, estimate, paired_difference


def test_nothing_measured_gives_no_number() -> None:
    assert estimate([], []) == Estimate(None, None, None, 0)


def test_one_cluster_has_a_mean_but_no_interval() -> None:
    assert estimate([1.0, 0.0], ["a", "a"]) == Estimate(0.5, None, None, 2)


def test_the_interval_of_two_needles_runs_from_one_to_the_other() -> None:
    """Of two clusters drawn twice, a quarter of the draws hold the first only, a quarter the second only."""
    found = estimate([0.0, 1.0], ["a", "b"])
    assert (found.mean, found.low, found.high) == (0.5, 0.0, 1.0)


def test_trials_of_one_needle_are_drawn_together() -> None:
    """Each needle's two trials are alike, so four trials say no more than two."""
    alike = estimate([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
    assert (alike.low, alike.high) == (0.0, 1.0)
    apart = estimate([float(i % 2) for i in range(40)], [str(i) for i in range(40)])
    assert apart.low is not None
    assert apart.high is not None
    assert 0.3 < apart.low < 0.5 < apart.high < 0.7


def test_pairing_takes_out_what_both_find_hard() -> None:
    hard = {str(i): float(i % 2) for i in range(20)}
    better = {name: value + 0.25 for name, value in hard.items()}
    found = paired_difference(better, hard, {name: name for name in hard})
    assert found.mean == pytest.approx(0.25)
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_only_prompts_that_both_have_count() -> None:
    found = paired_difference({"p": 1.0, "q": 1.0}, {"q": 0.0, "r": 1.0}, {"p": "p", "q": "q"})
    assert (found.mean, found.num) == (1.0, 1)


def test_the_same_seed_gives_the_same_interval() -> None:
    values, names = [0.1 * i for i in range(9)], [str(i) for i in range(9)]
    assert estimate(values, names, seed=3) == estimate(values, names, seed=3)

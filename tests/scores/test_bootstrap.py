from __future__ import annotations

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.bootstrap import bootstrap_interval, head_intervals


def slow_interval(values, confidence, num_resamples, seed):
    """Plain loops over the same draws."""
    draws = np.random.default_rng(seed).integers(0, len(values), size=(num_resamples, len(values)))
    means = sorted(sum(values[i] for i in row) / len(values) for row in draws.tolist())
    return tuple(float(np.quantile(means, q)) for q in ((1 - confidence) / 2, (1 + confidence) / 2))


def test_interval_equals_plain_resampling():
    values = np.array([0.1, 0.9, 0.4, 0.4, 0.75])
    low, high = bootstrap_interval(values, 0.9, 200, 11)
    assert (float(low), float(high)) == pytest.approx(slow_interval(values.tolist(), 0.9, 200, 11))


def test_interval_of_one_of_two_values_is_the_whole_range():
    # means of two draws of 0 and 1 are 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    low, high = bootstrap_interval(np.array([0.0, 1.0]))
    assert (float(low), float(high)) == (0.0, 1.0)


def test_interval_shrinks_with_the_root_of_the_number_of_trials():
    values = np.tile([0.0, 1.0], 200)
    low, high = bootstrap_interval(values, num_resamples=4000)
    assert float(high - low) == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_equal_trials_give_no_width():
    low, high = bootstrap_interval(np.full((7, 2, 3), 0.1))
    assert low.shape == (2, 3)
    assert np.array_equal(low, high)


def test_seed_decides():
    values = np.random.default_rng(0).random((20, 3))
    same, again, other = (bootstrap_interval(values, seed=seed)[0].tolist() for seed in (5, 5, 6))
    assert same == again != other


def test_head_intervals_follow_the_heads_asked_for(toy_scores):
    # head (0, 2) is 0.4 in each passing trial; head (1, 0) is 0.9, 0.6, 0.6; the failing trial's 9.0 is not counted
    (low, high), steady = head_intervals(toy_scores, [(1, 0), (0, 2)])
    assert (low, high) == pytest.approx((0.6, 0.9))
    assert steady == pytest.approx((0.4, 0.4))
    assert head_intervals(toy_scores, []) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"confidence": 1.0}, "confidence is 1.0, need a number between 0 and 1"),
        ({"confidence": float("nan")}, "confidence is nan"),
        ({"num_resamples": 0}, "num_resamples is 0, need at least 1"),
    ],
)
def test_bad_options_are_quoted(change, message):
    with pytest.raises(OptionError, match=message):
        bootstrap_interval(np.array([1.0]), **change)


def test_no_trial_has_no_interval():
    with pytest.raises(OptionError, match="at least 1 trial, got 0"):
        bootstrap_interval(np.zeros((0, 3)))

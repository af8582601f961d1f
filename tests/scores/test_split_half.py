from __future__ import annotations

import math

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.ranks import spearman, split_half
from headprobe.scores.uncertainty import ClusteredTrials


def noisy(num_trials, noise, seed=0):
    rng = np.random.default_rng(seed)
    true = np.random.default_rng(99).standard_normal((1, 10, 20))
    return ClusteredTrials.of_rows(true + noise * rng.standard_normal((num_trials, 10, 20)))


def test_halves_of_two_trials_are_the_trials():
    rng = np.random.default_rng(0)
    scores = rng.random((2, 3, 5))
    found = split_half(ClusteredTrials.of_rows(scores), top=3, num_splits=7)
    expected = spearman(scores[0], scores[1])
    assert (found.spearman, found.low, found.high) == pytest.approx((expected,) * 3)


def test_whole_file_forecast_is_what_two_files_of_that_size_reach():
    forecasts = [split_half(noisy(20, 4.0, seed)).whole for seed in range(0, 20, 2)]
    reached = [
        spearman(noisy(20, 4.0, seed).scores.mean(axis=0), noisy(20, 4.0, seed + 1).scores.mean(axis=0))
        for seed in range(0, 20, 2)
    ]
    assert np.mean(forecasts) == pytest.approx(np.mean(reached), abs=0.03)


def test_trials_of_a_cluster_stay_in_one_half():
    scores = np.repeat(np.random.default_rng(0).random((4, 2, 6)), 10, axis=0)
    together = split_half(ClusteredTrials(scores, np.repeat(np.arange(4), 10), "needle"), top=5)
    alone = split_half(ClusteredTrials(scores, np.arange(40), "trial"), top=5)
    assert together.spearman < alone.spearman - 0.2


def test_heads_without_ranks_give_no_number():
    found = split_half(ClusteredTrials(np.ones((4, 1, 30)), np.arange(4), "trial"))
    assert math.isnan(found.spearman)
    assert math.isnan(found.whole)


def test_one_trial_has_no_halves():
    with pytest.raises(OptionError, match="at least 2 independent trials, got 1"):
        split_half(noisy(1, 1.0))
    with pytest.raises(OptionError, match="num_splits is 0"):
        split_half(noisy(3, 1.0), num_splits=0)

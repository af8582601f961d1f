"""The intervals of means: against plain loops, and the same whatever else is computed."""

from __future__ import annotations

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.uncertainty import NUM_RESAMPLES, ClusteredTrials, draws, head_intervals, mean_intervals


def alone(values):
    """Each trial a cluster of its own."""
    return np.arange(len(values))


def slow_interval(values, cluster, confidence, num_resamples, seed):
    """Plain loops over the same draws of clusters."""
    number = max(cluster) + 1
    times = np.random.default_rng(seed).multinomial(number, [1 / number] * number, size=num_resamples)
    means = []
    for row in times.tolist():
        drawn = [v for v, c in zip(values, cluster, strict=True) for _ in range(row[c])]
        means.append(sum(drawn) / len(drawn))
    return tuple(float(np.quantile(means, q)) for q in ((1 - confidence) / 2, (1 + confidence) / 2))


@pytest.mark.parametrize("cluster", [[0, 1, 2, 3, 4], [0, 0, 1, 2, 1]])
def test_interval_equals_plain_resampling(cluster):
    values = np.array([0.1, 0.9, 0.4, 0.4, 0.75])
    ((low, high),) = mean_intervals([values], np.array(cluster), 0.9, 200, 11)
    assert (low, high) == pytest.approx(slow_interval(values.tolist(), cluster, 0.9, 200, 11))


def test_interval_of_one_of_two_values_is_the_whole_range():
    # means of two draws of 0 and 1 are 0, 1/2, 1 with probability 1/4, 1/2, 1/4
    values = np.array([0.0, 1.0])
    assert mean_intervals([values], alone(values)) == [(0.0, 1.0)]


def test_interval_shrinks_with_the_root_of_the_number_of_trials():
    values = np.tile([0.0, 1.0], 200)
    ((low, high),) = mean_intervals([values], alone(values), num_resamples=4000)
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.1)


def test_trials_of_one_cluster_say_no_more_than_one():
    values = np.random.default_rng(0).random(30)
    ((low, high),) = mean_intervals([values], alone(values))
    ((copied_low, copied_high),) = mean_intervals([np.repeat(values, 4)], np.repeat(np.arange(30), 4))
    assert (copied_low, copied_high) == pytest.approx((low, high))


def test_equal_trials_give_no_width():
    assert mean_intervals([np.full(7, 0.1)] * 2, np.array([0, 0, 1, 2, 2, 2, 3])) == [(0.1, 0.1)] * 2


def test_seed_decides():
    values = np.random.default_rng(0).random(20)
    same, again, other = (mean_intervals([values], alone(values), seed=seed) for seed in (5, 5, 6))
    assert same == again != other


def test_an_interval_does_not_depend_on_what_is_computed_beside_it(monkeypatch):
    """To the last bit, and however large the blocks of draws are."""
    trials = ClusteredTrials(np.random.default_rng(1).random((40, 3, 7)), np.arange(40) % 11, "needle")
    heads = [(layer, head) for layer in range(3) for head in range(7)]
    together = trials.intervals(heads)
    assert [trials.intervals([head])[0] for head in heads] == together
    assert trials.intervals(heads[4:9]) == together[4:9]
    monkeypatch.setattr("headprobe.scores.uncertainty._COLUMNS", 2)
    assert trials.intervals(heads) == together


def test_draws_are_the_same_in_blocks_and_kept(monkeypatch):
    whole = np.concatenate(list(draws(7, 300, seed=3)))
    monkeypatch.setattr("headprobe.scores.uncertainty.CHUNK_ELEMENTS", 700)
    blocks = list(draws(7, 300, seed=3))
    assert [len(block) for block in blocks] == [100, 100, 100]
    assert np.array_equal(np.concatenate(blocks), whole)
    assert whole.sum(axis=1).tolist() == [7.0] * 300
    assert sum(len(block) for block in draws(5)) == NUM_RESAMPLES == 2000


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
        mean_intervals([np.array([1.0])], np.array([0]), **change)


def test_no_trial_has_no_interval():
    with pytest.raises(OptionError, match="at least 1 trial, got 0"):
        mean_intervals([np.zeros(0)], np.zeros(0, dtype=np.int64))

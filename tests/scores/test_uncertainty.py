from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from headprobe.errors import NoPassingTrialError, OptionError
from headprobe.scores.any_scores import read_any
from headprobe.scores.score_file import write_score_file
from headprobe.scores.uncertainty import ClusteredTrials


def named(scores, needles, lengths):
    rows = [replace(t, needle=n, length=k) for t, n, k in zip(scores.trials, needles, lengths, strict=True)]
    return replace(scores, trials=tuple(rows))


@pytest.mark.parametrize(
    ("kind", "clusters"),
    [("needle-length", [0, 0, 1, 2]), ("needle", [0, 0, 0, 1]), ("trial", [0, 1, 2, 3])],
)
def test_clusters_are_what_they_are_called(make_scores, kind, clusters):
    scores = named(make_scores([[[1.0]]] * 4, [True] * 4), ["a", "a", "a", "b"], [256, 256, 512, 512])
    assert ClusteredTrials.of(scores, kind).cluster.tolist() == clusters


def test_failing_trials_do_not_count(toy_scores):
    trials = ClusteredTrials.of(toy_scores)
    assert (trials.num_trials, trials.num_clusters) == (3, 3)
    assert trials.flat.max() == 0.9


def test_trials_of_equal_scores_are_one():
    trials = ClusteredTrials.of_rows(np.array([[[0.0, 1.0]], [[2.0, 1.0]], [[-0.0, 1.0]]]))
    assert trials.cluster.tolist() == [0, 1, 0]
    assert trials.sizes.tolist() == [2.0, 1.0]
    assert trials.sums.tolist() == [[0.0, 2.0], [2.0, 1.0]]


def test_resampled_means_weigh_every_trial_of_a_drawn_cluster():
    trials = ClusteredTrials(np.array([[[0.0]], [[0.0]], [[3.0]]]), np.array([0, 0, 1]), "needle")
    means = np.concatenate(list(trials.means(400, seed=0))).ravel()
    # clusters drawn: both the first (0), one of each (3 / 3), both the second (3)
    assert set(means.tolist()) == {0.0, 1.0, 3.0}
    assert [float((means == m).mean()) for m in (0.0, 1.0, 3.0)] == pytest.approx([0.25, 0.5, 0.25], abs=0.06)


def test_clusters_make_the_means_vary_more_than_single_trials_would():
    rng = np.random.default_rng(0)
    scores = np.repeat(rng.random((20, 1, 1)), 5, axis=0)
    together = ClusteredTrials(scores, np.repeat(np.arange(20), 5), "needle")
    alone = ClusteredTrials(scores, np.arange(100), "trial")
    spreads = [np.concatenate(list(t.means(2000, seed=0))).std() for t in (together, alone)]
    assert spreads[0] / spreads[1] == pytest.approx(5**0.5, rel=0.1)


def test_blocks_do_not_change_what_is_drawn(monkeypatch):
    trials = ClusteredTrials.of_rows(np.random.default_rng(0).random((7, 2, 3)))
    whole = np.concatenate(list(trials.means(10, seed=4)))
    monkeypatch.setattr("headprobe.scores.uncertainty.CHUNK_ELEMENTS", 21)
    assert [len(block) for block in trials.means(10, seed=4)] == [3, 3, 3, 1]
    assert np.concatenate(list(trials.means(10, seed=4))) == pytest.approx(whole)


def test_query_heads_become_kv_heads_trial_by_trial(toy_scores):
    grouped = ClusteredTrials.of(toy_scores).grouped(2)
    assert grouped.scores.shape == (3, 2, 2)
    assert grouped.scores[0].tolist() == [[0.1, 0.2], [0.45, 0.05]]


def test_a_file_without_trial_scores_says_so(tmp_path, toy_scores):
    path = write_score_file(tmp_path / "bare.json", toy_scores, with_trial_scores=False)
    with pytest.raises(OptionError, match="bare.json holds no trial scores"):
        ClusteredTrials.of_any(read_any(path))


def test_other_clusters_and_no_trial_are_refused(toy_scores):
    with pytest.raises(OptionError, match="clustered by needle-length, needle, trial, not 'depth'"):
        ClusteredTrials.of(toy_scores, "depth")
    with pytest.raises(NoPassingTrialError, match="none of 0 trials"):
        ClusteredTrials.of_rows(np.zeros((0, 1, 1)))

from __future__ import annotations

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.stability import rank_intervals, stability, top_overlaps
from headprobe.scores.uncertainty import ClusteredTrials


def trials_of(means, num_trials, noise, seed=0):
    """Trials around known means `[N]`, as one layer."""
    rng = np.random.default_rng(seed)
    made = np.asarray(means) + noise * rng.standard_normal((num_trials, len(means)))
    return ClusteredTrials.of_rows(made[:, None, :])


def test_heads_far_apart_are_stable():
    found = stability(trials_of(np.arange(40, 0, -1.0), 30, 0.1), top=20)
    assert (found.stable_top, found.more_trials, found.is_stable) == (20, 0, True)
    assert found.overlap == (1.0,) * 20
    assert found.verdict == "the top 20 are stable; about 20.0 of the top 20 would be reproduced"


def test_heads_that_differ_by_noise_only_are_not_stable():
    found = stability(trials_of(np.full(60, 5.0), 30, 1.0), top=20)
    assert found.stable_top < 5
    assert not found.is_stable
    assert found.more_trials is None or found.more_trials > 60


def test_the_verdict_names_stable_ranks_and_the_trials_that_are_missing():
    means = np.concatenate([np.linspace(40, 30, 10), np.linspace(10.0, 9.0, 50)])
    found = stability(trials_of(means, 30, 1.0), top=30)
    assert 10 <= found.stable_top < 30
    assert found.more_trials is not None
    again = f"about {30 * found.overlap[29]:.1f} of the top 30 would be reproduced"
    assert found.verdict == (
        f"the top {found.stable_top} are stable, ranks {found.stable_top + 1} to 30 are not; {again}; "
        f"about {found.more_trials} more passing trials would settle them"
    )


def test_as_many_more_trials_as_told_do_settle_it():
    means = np.sort(np.random.default_rng(0).exponential(1.0, 200))[::-1] + 5
    told = [stability(trials_of(means, 30, 1.0, seed), top=20).more_trials for seed in range(15)]
    enough = 30 + int(np.median([15 * 30 if more is None else more for more in told]))
    tops = [set(np.argsort(-trials_of(means, enough, 1.0, seed).flat.mean(axis=0))[:20]) for seed in range(40)]
    assert 0.945 < np.mean([len(top & set(range(20))) / 20 for top in tops]) < 0.975


def clustered(means, num_clusters, each, seed=0):
    """Trials that differ from needle to needle (1.0) far more than on one needle (0.1)."""
    rng = np.random.default_rng(seed)
    needles = np.asarray(means) + rng.standard_normal((num_clusters, len(means)))
    trials = np.repeat(needles, each, axis=0) + 0.1 * rng.standard_normal((num_clusters * each, len(means)))
    return ClusteredTrials(trials[:, None, :], np.repeat(np.arange(num_clusters), each), "needle")


def test_where_needles_differ_more_needles_are_asked_for_and_more_trials_of_the_same_do_not_help():
    means = np.sort(np.random.default_rng(0).exponential(1.0, 200))[::-1] + 5
    few = [stability(clustered(means, 30, 4, seed), top=20) for seed in range(15)]
    same = [stability(clustered(means, 30, 40, seed), top=20) for seed in range(15)]
    shares = np.mean([found.overlap[19] for found in few]), np.mean([found.overlap[19] for found in same])
    assert shares[0] < 0.93
    assert shares[1] == pytest.approx(shares[0], abs=0.01)
    told = few[0]
    assert told.more_clusters is not None
    assert told.more_trials == pytest.approx(4 * told.more_clusters, rel=0.1)
    assert told.verdict.endswith(
        f"about {told.more_trials} more passing trials, {told.more_clusters} of them independent, would settle them"
    )
    enough = 30 + int(np.median([15 * 30 if found.more_clusters is None else found.more_clusters for found in few]))
    tops = [set(np.argsort(-clustered(means, enough, 1, seed).flat.mean(axis=0))[:20]) for seed in range(40)]
    assert 0.945 < np.mean([len(top & set(range(20))) / 20 for top in tops]) < 0.975


def test_overlap_equals_plain_counting():
    trials = trials_of([5.0, 4.0, 4.0, 3.0, 1.0], 12, 1.0)
    mean = trials.flat.mean(axis=0)
    resampled = np.concatenate(list(trials.means(50, seed=3)))
    order = np.argsort(-mean)
    plain = [np.mean([len({*order[:k]} & {*np.argsort(-row)[:k]}) / k for row in resampled]) for k in (1, 2, 3, 4)]
    assert top_overlaps(trials, mean, 4, 50, seed=3).tolist() == pytest.approx(plain)


def test_overlap_tells_how_much_of_the_measured_top_truly_belongs_there():
    rng = np.random.default_rng(0)
    means = np.sort(rng.exponential(1.0, 100))[::-1]
    told, true = [], []
    for seed in range(40):
        trials = trials_of(means, 40, 1.0, seed)
        told.append(stability(trials, top=10, num_resamples=200).overlap[9])
        true.append(len({*np.argsort(-trials.flat.mean(axis=0))[:10]} & set(range(10))) / 10)
    assert np.mean(told) == pytest.approx(np.mean(true), abs=0.03)


def test_rank_intervals_hold_the_true_rank_as_often_as_they_say():
    means = np.sort(np.random.default_rng(0).exponential(1.0, 60))[::-1]
    true = {(0, i): i + 1 for i in range(60)}
    held = [
        head.rank_low <= true[head.layer, head.head] <= head.rank_high
        for seed in range(40)
        for head in rank_intervals(trials_of(means, 40, 0.5, seed), top=15, num_resamples=300)
    ]
    assert np.mean(held) > 0.93


def test_rank_intervals_equal_plain_resampling():
    trials = trials_of([3.0, 2.0, 2.5, 1.0], 9, 1.0)
    found = rank_intervals(trials, top=4, confidence=0.9, num_resamples=80, seed=2)
    resampled = np.concatenate(list(trials.means(80, seed=2)))
    for place, head in enumerate(found, 1):
        scores = resampled[:, head.head]
        ranks = [1 + sum(row > row[head.head]) for row in resampled]
        assert head.rank == place
        assert head.score == trials.flat[:, head.head].mean()
        assert (head.score_low, head.score_high) == pytest.approx(tuple(np.quantile(scores, [0.05, 0.95])))
        assert (head.rank_low, head.rank_high) == pytest.approx(tuple(np.quantile(ranks, [0.05, 0.95])))


def test_layers_and_heads_are_told_apart():
    scores = np.zeros((2, 3, 4))
    scores[:, 2, 1] = [0.5, 0.7]
    assert [(h.layer, h.head) for h in rank_intervals(ClusteredTrials.of_rows(scores), top=2)] == [(2, 1), (0, 0)]


def test_heads_that_score_nothing_have_no_rank_to_settle():
    trials = trials_of([0.0] * 30, 20, 0.0)
    assert stability(trials, top=5).verdict == "no head scores above 0: there is no ranking"
    scores = np.zeros((20, 1, 30))
    scores[:, 0, 3] = np.linspace(0.5, 0.6, 20)
    found = stability(ClusteredTrials.of_rows(scores), top=5)
    assert found.top == 1
    assert found.verdict.startswith("only 1 head scores above 0; the top 1 are stable")


def test_few_trials_are_too_few_to_tell():
    found = stability(trials_of([9.0, 5.0, 1.0], 9, 0.01), top=1)
    assert not found.is_stable
    assert found.more_trials is None
    assert found.verdict == "9 independent trials are too few to tell what is stable: need at least 10"


def test_copies_of_a_trial_do_not_make_it_sure():
    rng = np.random.default_rng(0)
    trial = 5.0 + rng.random((1, 1, 30))
    found = stability(ClusteredTrials.of_rows(np.repeat(trial, 500, axis=0)), top=5)
    assert found.num_clusters == 1
    assert not found.is_stable
    assert found.verdict.startswith("1 independent trial is too few")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top": 0}, "the top is 0, need 1 to 2 of 3 heads"),
        ({"top": 3}, "the top is 3, need 1 to 2 of 3 heads"),
        ({"agreement": 1.0}, "agreement is 1.0, need a number between 0 and 1"),
        ({"num_resamples": 0}, "num_resamples is 0, need at least 1"),
    ],
)
def test_bad_options_are_quoted(change, message):
    with pytest.raises(OptionError, match=message):
        stability(trials_of([3.0, 2.0, 1.0], 12, 0.1), **{"top": 1, **change})


def test_bad_options_of_rank_intervals_are_quoted():
    with pytest.raises(OptionError, match="top is -1, confidence 0.95, num_resamples 2000"):
        rank_intervals(trials_of([3.0, 2.0, 1.0], 12, 0.1), top=-1)

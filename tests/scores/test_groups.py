from __future__ import annotations

from dataclasses import replace

import numpy as np

from headprobe.scores.ranks import spearman
from headprobe.scores.stability import trial_groups


def run_of(make_scores, tables, lengths):
    scores = make_scores(list(tables), [True] * len(tables))
    rows = [replace(trial, length=length, depth=50.0) for trial, length in zip(scores.trials, lengths, strict=True)]
    return replace(scores, trials=tuple(rows))


def noisy(seed, num_trials, noise=0.3):
    true = np.random.default_rng(99).random((1, 4, 10))
    return true + noise * np.random.default_rng(seed).standard_normal((num_trials, 4, 10))


def test_a_group_is_compared_with_the_rest(toy_scores):
    short, long = trial_groups(toy_scores, "length")
    passing = toy_scores.passing_scores
    assert (short.name, short.num_trials, short.num_passed) == ("256", 2, 1)
    assert (long.name, long.num_trials, long.num_passed) == ("512", 2, 2)
    assert short.spearman == spearman(passing[0], passing[1:].mean(axis=0))
    assert short.spearman == long.spearman


def test_a_length_that_ranks_heads_in_another_way_is_found(make_scores):
    tables, lengths = noisy(0, 60), [256, 512, 768, 1024, 1280, 1536] * 10
    tables[3::6] = tables[3::6, :, ::-1]
    groups = trial_groups(run_of(make_scores, tables, lengths), "length")
    assert [group.name for group in groups if group.is_unlike] == ["1024"]


def test_groups_of_one_measurement_are_rarely_called_unlike(make_scores):
    found = [
        group.is_unlike
        for seed in range(10)
        for group in trial_groups(run_of(make_scores, noisy(seed, 40), [256, 512, 768, 1024] * 10), "length")
    ]
    assert sum(found) <= 1


def test_a_single_group_and_a_group_that_never_passed_have_nothing_to_compare(make_scores):
    scores = make_scores([[[0.1, 0.2]], [[0.3, 0.1]], [[9.0, 9.0]]], [True, True, False])
    assert [g.spearman for g in trial_groups(scores, "needle")][2] is None
    only = run_of(make_scores, noisy(0, 5), [256] * 5)
    assert [g.spearman for g in trial_groups(only, "length")] == [None]


def test_depths_are_sorted_and_named_without_zeros(make_scores):
    scores = make_scores([[[0.1, 0.2]]] * 6, [True] * 6)
    assert [group.name for group in trial_groups(scores, "depth")] == ["0", "50", "100"]

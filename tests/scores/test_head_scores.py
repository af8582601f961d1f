from __future__ import annotations

import numpy as np
import pytest

from headprobe.errors import NonFiniteError, NoPassingTrialError, OptionError
from headprobe.scores.head_scores import ScoreTable, Trial, normalize


def test_mean_is_over_passing_trials_only(toy_scores):
    assert toy_scores.mean == pytest.approx(np.array([[0.0, 0.4, 0.4, 0.0], [0.7, 0.0, 0.1, 0.1]]))


def test_std_divides_by_the_number_of_passing_trials(toy_scores):
    # head (0, 1): 0.2, 0.4, 0.6 -> variance (0.04 + 0 + 0.04) / 3; head (1, 0): 0.9, 0.6, 0.6 -> 0.06 / 3
    # head (1, 2): 0, 0, 0.3 -> (0.01 + 0.01 + 0.04) / 3
    expected = np.array([[0.0, (0.08 / 3) ** 0.5, 0.0, 0.0], [0.02**0.5, 0.0, 0.02**0.5, 0.0]])
    assert toy_scores.std == pytest.approx(expected, abs=1e-12)


def test_normalized_is_the_share_of_each_head(toy_scores):
    # the means sum to 1.7
    expected = np.array([[0.0, 4 / 17, 4 / 17, 0.0], [7 / 17, 0.0, 1 / 17, 1 / 17]])
    assert toy_scores.normalized == pytest.approx(expected)
    assert toy_scores.normalized.sum() == pytest.approx(1.0)


def test_negative_means_are_clipped_before_normalising(make_scores):
    scores = make_scores([[[-0.5, 0.25], [0.75, 0.0]]], [True])
    assert scores.normalized.tolist() == [[0.0, 0.25], [0.75, 0.0]]
    assert scores.mean.tolist() == [[-0.5, 0.25], [0.75, 0.0]]


def test_normalising_nothing_gives_zeros():
    assert normalize(np.array([[0.0, -1.0]])).tolist() == [[0.0, 0.0]]


def test_normalising_survives_the_smallest_numbers():
    assert normalize(np.array([[5e-324, 5e-324]])).tolist() == [[0.5, 0.5]]


def test_counts_trials_and_passes(toy_scores):
    assert (toy_scores.num_trials, toy_scores.num_passed) == (4, 3)


def test_ranking_is_best_first_and_breaks_ties_by_layer_then_head(make_scores):
    scores = make_scores([[[0.1, 0.5, 0.1], [0.5, 0.9, 0.1]]], [True])
    assert scores.ranking() == [(1, 1, 0.9), (0, 1, 0.5), (1, 0, 0.5), (0, 0, 0.1), (0, 2, 0.1), (1, 2, 0.1)]


def test_top_takes_what_there_is(make_scores):
    scores = make_scores([[[0.1, 0.5]]], [True])
    assert scores.top(0) == []
    assert scores.top(1) == [(0, 1, 0.5)]
    assert scores.top(99) == [(0, 1, 0.5), (0, 0, 0.1)]


def test_top_refuses_a_negative_number(toy_scores):
    with pytest.raises(OptionError, match="top -1 heads, need at least 0"):
        toy_scores.top(-1)


def test_kv_heads_take_mean_or_max_of_their_query_heads(toy_scores):
    assert toy_scores.to_kv_heads() == pytest.approx(np.array([[0.2, 0.2], [0.35, 0.1]]))
    assert toy_scores.to_kv_heads("max") == pytest.approx(np.array([[0.4, 0.4], [0.7, 0.1]]))


def test_kv_reduction_refuses_other_names(toy_scores):
    with pytest.raises(OptionError, match="'mean' or 'max', not 'median'"):
        toy_scores.to_kv_heads("median")


def test_pass_rates_count_by_length_and_depth(toy_scores):
    assert list(toy_scores.pass_rates().items()) == [
        ((256, 0.0), (1, 1)),
        ((256, 50.0), (0, 1)),
        ((512, 0.0), (1, 1)),
        ((512, 50.0), (1, 1)),
    ]


def test_a_stored_table_stands_in_for_left_out_trial_scores(make_scores):
    table = ScoreTable(np.array([[0.5, 0.0]]), np.array([[0.1, 0.0]]), np.array([[1.0, 0.0]]))
    trials = (Trial("a", "n", 64, 0.0, True, 1.0, "", 3),)
    scores = make_scores([[[0.0, 0.0]]], [True], trials=trials, stored=table)
    assert scores.mean.tolist() == [[0.5, 0.0]]
    assert scores.ranking() == [(0, 0, 0.5), (0, 1, 0.0)]
    assert not scores.has_trial_scores
    with pytest.raises(OptionError, match="hold no trial scores"):
        _ = scores.passing_scores


def test_no_passing_trial_has_no_mean(make_scores):
    scores = make_scores([[[0.5]]], [False])
    with pytest.raises(NoPassingTrialError, match="none of 1 trials passed"):
        _ = scores.mean


def test_tables_are_copies_and_read_only(toy_scores):
    source = np.ones((1, 2))
    trial = Trial("a", "n", 64, 0.0, True, 1.0, "", 3, source)
    source[0, 0] = 5.0
    assert trial.scores is not None
    assert trial.scores.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="read-only"):
        toy_scores.mean[0, 0] = 1.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_non_finite_scores_are_refused_with_trial_layer_and_head(bad):
    with pytest.raises(NonFiniteError, match=f"trial t7 has the score {bad} at layer 1, head 0"):
        Trial("t7", "n", 64, 0.0, True, 1.0, "", 3, np.array([[0.0, 0.0], [bad, 0.0]]))


def test_scores_of_another_shape_are_refused(make_scores):
    odd = (Trial("odd", "n", 64, 0.0, True, 1.0, "", 3, np.zeros((2, 1))),)
    with pytest.raises(ValueError, match=r"trial odd has scores of shape \(2, 1\), the model \(1, 2\)"):
        make_scores([[[0.0, 0.0]]], [True], trials=odd)


def test_scores_need_two_axes():
    with pytest.raises(ValueError, match=r"shape \(3,\), need \[layers, heads\]"):
        Trial("t", "n", 64, 0.0, True, 1.0, "", 3, np.zeros(3))


def test_a_trial_that_comes_twice_is_refused(make_scores):
    same = tuple(Trial(f"t{i % 2}", "n", 64, 0.0, True, 1.0, "", 3, np.zeros((1, 1))) for i in range(3))
    with pytest.raises(ValueError, match="repeated trial ids: 't0'"):
        make_scores([[[0.0]]], [True], trials=same)


def test_a_passing_trial_needs_scores_or_a_stored_table(make_scores):
    with pytest.raises(ValueError, match="a passing trial has no scores"):
        make_scores([[[0.0]]], [True], trials=(Trial("t", "n", 64, 0.0, True, 1.0, "", 3),))


def test_trials_are_equal_by_content():
    first, same = (Trial("t", "n", 64, 0.0, True, 1.0, "", 3, np.ones((1, 1))) for _ in range(2))
    assert first == same
    assert first != Trial("t", "n", 64, 0.0, True, 1.0, "", 3, np.zeros((1, 1)))
    assert first != Trial("t", "n", 64, 0.0, True, 1.0, "", 3)
    assert first != "t"


def test_summation_order_of_eighty_by_sixty_four_heads_does_not_matter():
    # fsum rounds once, so that the same means give the same bits on every machine
    mean = np.random.default_rng(3).random((80, 64))
    assert np.array_equal(normalize(mean), normalize(mean[::-1, ::-1])[::-1, ::-1])

from __future__ import annotations

import math

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.scores.ranks import (
    midranks,
    pearson,
    ranked_heads,
    spearman,
    spearman_interval,
    top_k_overlap,
    top_k_weights,
)


def slow_midranks(values):
    """Rank by counting: how many are larger, and half of the others that are equal."""
    return [1 + sum(b > a for b in values) + (sum(b == a for b in values) - 1) / 2 for a in values]


def slow_spearman(a, b):
    """Pearson's correlation of the ranks, by its definition."""
    x, y = slow_midranks(a), slow_midranks(b)
    mx, my = sum(x) / len(x), sum(y) / len(y)
    top = sum((i - mx) * (j - my) for i, j in zip(x, y, strict=True))
    return top / math.sqrt(sum((i - mx) ** 2 for i in x) * sum((j - my) ** 2 for j in y))


@pytest.mark.parametrize("seed", range(5))
def test_midranks_equal_counting_row_by_row(seed):
    values = np.random.default_rng(seed).integers(0, 6, size=(4, 17)) / 5
    assert midranks(values).tolist() == [slow_midranks(row) for row in values.tolist()]


def test_midranks_of_equal_values_are_the_middle():
    assert midranks(np.zeros(5)).tolist() == [3.0] * 5


@pytest.mark.parametrize("seed", range(5))
def test_spearman_equals_its_definition_with_ties(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, size=(2, 3, 8)) / 4
    assert spearman(a, b) == pytest.approx(slow_spearman(a.ravel().tolist(), b.ravel().tolist()))


def test_spearman_by_hand():
    # ranks 1 2 3 4 against 2 1 4 3: 1 - 6 * 4 / (4 * 15)
    assert spearman(np.array([4.0, 3.0, 2.0, 1.0]), np.array([7.0, 9.0, 0.0, 1.0])) == pytest.approx(0.6)


def test_spearman_does_not_mind_any_rising_change_of_scale():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 4, 6))
    assert spearman(a, b) == pytest.approx(spearman(np.exp(9 * a), b**3))


def test_spearman_of_a_table_without_ranks_is_not_a_number():
    assert math.isnan(spearman(np.ones((2, 2)), np.arange(4.0).reshape(2, 2)))
    assert all(map(math.isnan, spearman_interval(np.ones((2, 2)), np.arange(4.0).reshape(2, 2))))


def test_spearman_interval_equals_plain_resampling_of_heads():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 4, size=9) / 3
    b = a + rng.integers(0, 3, size=9) / 2
    low, high = spearman_interval(a, b, 0.9, 60, seed=5)
    times = np.random.default_rng(5).multinomial(9, np.full(9, 1 / 9), size=60)
    drawn = [np.repeat(np.arange(9), row) for row in times]
    found = [slow_spearman(a[rows].tolist(), b[rows].tolist()) for rows in drawn]
    assert (low, high) == pytest.approx(tuple(np.quantile(found, [0.05, 0.95])))


def test_spearman_interval_holds_the_true_correlation_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    true = 6 / math.pi * math.asin(0.6 / 2)  # of normal pairs with correlation 0.6
    held = 0
    for _ in range(100):
        x, noise = rng.standard_normal((2, 150))
        low, high = spearman_interval(x, 0.6 * x + 0.8 * noise, num_resamples=200)
        held += low <= true <= high
    assert 88 <= held <= 100


def test_top_k_shares_without_ties():
    a, b = np.arange(10.0), np.array([0, 1, 2, 3, 9, 8, 7, 6, 5, 4.0])
    assert top_k_overlap(a, b, 3) == 0.0
    assert top_k_overlap(a, b, 5) == 4.0
    assert top_k_overlap(a, b, 10) == 10.0


def test_heads_tied_at_the_border_share_the_last_places():
    assert top_k_weights(np.array([[1.0, 0.5], [0.5, 0.5]]), 3).tolist() == [[1.0, 2 / 3], [2 / 3, 2 / 3]]
    # lots: the second place of the one side falls on any of three heads, that of the other is head 1
    assert top_k_overlap(np.array([1.0, 0.5, 0.5, 0.5]), np.array([1.0, 0.5, 0.4, 0.3]), 2) == pytest.approx(4 / 3)


def test_pearson_counts_pairs_by_weight():
    a, b = np.array([0.0, 1.0, 5.0]), np.array([1.0, 0.0, 7.0])
    twice = np.array([0.0, 0.0, 1.0, 5.0, 5.0, 5.0]), np.array([1.0, 1.0, 0.0, 7.0, 7.0, 7.0])
    assert float(pearson(a, b, np.array([2.0, 1.0, 3.0]))) == pytest.approx(float(pearson(*twice)))


def test_heads_at_or_below_zero_are_not_ranked():
    assert ranked_heads(np.array([[0.5, 0.0], [-0.1, 1e-9]])) == 2


def test_other_shapes_and_tops_are_quoted():
    with pytest.raises(OptionError, match=r"shape \(2, 2\) and \(4,\) cannot be compared"):
        spearman(np.ones((2, 2)), np.ones(4))
    for k in (0, 5):
        with pytest.raises(OptionError, match=f"the top {k} of 4 heads"):
            top_k_weights(np.ones(4), k)

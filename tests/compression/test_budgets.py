"""Budgets: exact totals, caps and floors, against a plain bisection; and the published code's formula."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from headprobe.compression.budgets import (
    AUTHORS_BETAS,
    BudgetRequest,
    authors_budgets,
    fill,
    head_score_budgets,
    head_score_shares,
    share_lost,
    share_out,
)
from headprobe.errors import OptionError


def bisected(shares: list[float], total: int, cap: int) -> list[float]:
    """`min(cap, lambda * share)` that sums to `total`, by bisection on lambda."""
    low, high = 0.0, 1e12
    for _ in range(300):
        middle = (low + high) / 2
        if sum(min(cap, middle * share) for share in shares) < total:
            low = middle
        else:
            high = middle
    return [min(cap, high * share) for share in shares]


@pytest.mark.parametrize("seed", range(30))
def test_shares_are_filled_like_water(seed: int) -> None:
    random = np.random.default_rng(seed)
    shares = random.gamma(0.3, size=int(random.integers(1, 40))) + 1e-6
    cap = int(random.integers(1, 50))
    total = int(random.integers(0, cap * shares.size + 1))
    given = share_out(shares, total, cap)
    assert int(given.sum()) == total
    assert given.min() >= 0
    assert given.max() <= cap
    assert np.abs(given - np.array(bisected(shares.tolist(), total, cap))).max() <= 1.0 + 1e-6


def test_largest_remainders_get_the_rest_and_of_equal_ones_the_first() -> None:
    assert share_out(np.array([1.0, 1.0, 1.0]), 4, 9).tolist() == [2, 1, 1]
    assert share_out(np.array([2.6, 2.7, 2.7]), 8, 9).tolist() == [2, 3, 3]


def test_heads_without_a_share_get_something_only_when_the_others_are_full() -> None:
    assert share_out(np.array([1.0, 0.0, 0.0]), 3, 5).tolist() == [3, 0, 0]
    assert share_out(np.array([1.0, 0.0, 0.0]), 9, 5).tolist() == [5, 2, 2]


def test_what_a_cap_frees_goes_to_the_others_in_proportion() -> None:
    """30 over shares 6:2:1 with a cap of 15: the first is full, and 15 are split 2:1."""
    assert share_out(np.array([6.0, 2.0, 1.0]), 30, 15).tolist() == [15, 10, 5]


@pytest.mark.parametrize("bad", [np.array([np.nan, 1.0]), np.array([-1.0, 1.0]), np.array([np.inf, 1.0])])
def test_shares_must_be_numbers_that_can_be_shared(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite and not negative"):
        share_out(bad, 1, 5)


def test_more_than_fits_is_a_bug() -> None:
    with pytest.raises(ValueError, match="11 entries do not fit into 2 heads of at most 5"):
        share_out(np.ones(2), 11, 5)


def test_a_prompt_no_longer_than_the_budget_is_kept_whole() -> None:
    request = BudgetRequest(budget=20, prompt_tokens=20, num_layers=2, num_kv_heads=3, floor=8)
    assert fill(request, np.random.default_rng(0).random((2, 3))).tolist() == [[20] * 3] * 2


@pytest.mark.parametrize("budget", [9, 16, 64, 300])
@pytest.mark.parametrize("beta", AUTHORS_BETAS)
def test_head_score_budgets_sum_to_the_entry(budget: int, beta: float) -> None:
    scores = np.random.default_rng(1).gamma(0.2, size=(4, 3))
    capacity = head_score_budgets(scores, budget, floor=8, beta=beta, prompt_tokens=400)
    assert int(capacity.sum()) == budget * 12
    assert capacity.min() >= 8
    assert capacity.max() <= 400


def test_a_smaller_beta_shares_more_by_score() -> None:
    scores = np.array([[9.0, 1.0]])
    spread = [np.ptp(head_score_budgets(scores, 108, floor=8, beta=beta)) for beta in (1.01, 1.2, 2.0, 10.0)]
    assert spread == sorted(spread, reverse=True)
    assert head_score_shares(np.zeros((1, 2)), 10, 2.0).tolist() == [[10.0, 10.0]]


def test_budgets_out_of_range_quote_value_and_limit() -> None:
    with pytest.raises(OptionError, match="a budget of 7 entries per KV head is below the 8"):
        BudgetRequest(7, 100, 1, 1, floor=8)
    with pytest.raises(OptionError, match="a budget of 0 entries per KV head is too small, need at least 1"):
        BudgetRequest(0, 100, 1, 1)
    with pytest.raises(OptionError, match=r"beta is 1.0, need more than 1"):
        head_score_shares(np.ones((1, 1)), 5, 1.0)
    with pytest.raises(OptionError, match=r"head scores of shape \(1, 2\) for a model of \(2, 2\) KV heads"):
        BudgetRequest(20, 100, 2, 2, head_scores=np.ones((1, 2)))


# -- the published code's rounding ----------------------------------------------------------------------------------


def formula(scores: list[float], budget: int, window: int, beta: float) -> list[int]:
    """`pool = (B // beta) * N`, `least = B - B // beta`, `round(p * pool + least) + window`, in plain Python."""
    spare, total = budget - window, sum(scores)
    shared = spare // beta
    return [round(score / total * (shared * len(scores)) + (spare - shared)) + window for score in scores]


@pytest.mark.parametrize("budget", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("beta", AUTHORS_BETAS)
def test_compat_is_the_published_formula(budget: int, beta: float) -> None:
    scores = np.random.default_rng(3).gamma(0.2, size=(8, 8))
    assert authors_budgets(scores, budget, beta=beta).ravel().tolist() == formula(
        scores.ravel().tolist(), budget, 8, beta
    )


def test_lost_shares_are_exact_fractions() -> None:
    assert share_lost(np.array([[30, 10]]), prompt_tokens=20, budget=16) == Fraction(2, 32)
    assert share_lost(np.array([[20, 20]]), prompt_tokens=20, budget=16) == Fraction(-8, 32)


PUBLISHED = Path(os.environ.get("HEADPROBE_PUBLISHED_SCORES", "nowhere")) / "headkv"


@pytest.mark.skipif(not PUBLISHED.is_dir(), reason="HEADPROBE_PUBLISHED_SCORES names no folder of published scores")
@pytest.mark.parametrize("budget", [64, 128, 256, 512, 1024])
@pytest.mark.parametrize("beta", AUTHORS_BETAS)
def test_compat_on_published_scores(budget: int, beta: float) -> None:
    from headprobe.scores.any_scores import read_any

    files = sorted(PUBLISHED.glob("*.json"))
    assert files
    for file in files:
        mean = read_any(file).mean
        wanted = formula(mean.ravel().tolist(), budget, 8, beta)
        assert authors_budgets(mean, budget, beta=beta).ravel().tolist() == wanted

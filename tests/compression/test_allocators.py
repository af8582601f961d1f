"""Each allocator by hand, and the exact total of all of them on random requests."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headprobe.compression.allocators import Adaptive, HeadScore, Pyramid, RetrievalFull, Uniform
from headprobe.compression.budgets import BudgetRequest
from headprobe.compression.policies import ALLOCATORS
from headprobe.errors import OptionError


def request(budget: int, tokens: int, layers: int = 4, heads: int = 3, floor: int = 8, seed: int = 0) -> BudgetRequest:
    scores = np.random.default_rng(seed).gamma(0.3, size=(layers, heads))
    return BudgetRequest(budget, tokens, layers, heads, floor, scores)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize(("budget", "tokens"), [(8, 9), (9, 1000), (64, 65), (64, 2000), (500, 501), (700, 600)])
def test_totals_are_exact(name: str, budget: int, tokens: int) -> None:
    capacity = ALLOCATORS[name]().capacities(request(budget, tokens))
    assert int(capacity.sum()) == min(budget, tokens) * 12
    assert capacity.max() <= tokens
    assert capacity.min() >= min(8, tokens)


def test_uniform_gives_the_budget_to_each() -> None:
    assert (Uniform().capacities(request(20, 100)) == 20).all()


def test_pyramid_falls_in_equal_steps() -> None:
    """B = 40: lo = 2, hi = 78, step 76/3 over 4 layers: 78, 52 2/3, 27 1/3, 2, and the window."""
    assert Pyramid().capacities(request(48, 1000)).tolist() == [[w] * 3 for w in (86, 61, 35, 10)]


def test_a_pyramid_of_32_layers_by_hand() -> None:
    """B = 120: lo = 6, hi = 234, step 228/31 = 7.3548: 242, 234.65, 227.29, ..., 21.35, 14 with the window."""
    capacity = Pyramid().capacities(request(128, 5000, layers=32, heads=31))
    assert capacity[:3, 0].tolist() == [242, 235, 227]
    assert capacity[:, 30].tolist() == [round(242 - 228 * layer / 31) for layer in range(32)]
    assert capacity[-2:, 0].tolist() == [21, 14]
    assert int(capacity.sum()) == 128 * 32 * 31


@pytest.mark.parametrize("compat", ["pyramidkv", "headkv"])
def test_the_authors_pyramid_floors_its_step(compat: str) -> None:
    """The step is 228 // 31 = 7: 242, 235, ..., 25 with the window, 4 % more than asked for. On 60 tokens, B = 40:
    hi = 52, lo = 28, step 8."""
    capacity = Pyramid(compat=compat).capacities(request(128, 5000, layers=32, heads=2))
    assert capacity[:, 1].tolist() == [242 - 7 * layer for layer in range(32)]
    assert int(capacity.sum()) == 2 * 4272 > 128 * 32 * 2
    assert Pyramid(compat=compat).capacities(request(48, 60)).tolist() == [[w] * 3 for w in (60, 52, 44, 36)]
    assert (Pyramid(compat=compat).capacities(request(48, 48)) == 48).all()


def test_a_pyramid_of_one_layer_is_its_budget() -> None:
    assert Pyramid().capacities(request(48, 1000, layers=1)).tolist() == [[48] * 3]
    assert Pyramid(compat="pyramidkv").capacities(request(48, 1000, layers=1)).tolist() == [[48] * 3]


def test_a_pyramid_on_a_short_prompt_is_capped_by_it() -> None:
    """B = 40, 60 tokens: hi = 52, lo = 28, step 8."""
    capacity = Pyramid().capacities(request(48, 60))
    assert capacity.sum(1).tolist() == [180, 156, 132, 108]


def test_adaptive_heads_share_a_layer_by_their_part_of_the_top() -> None:
    """Of the top 8 entries the first head has 6: 0.8 * 6 + 0.2 * 4 = 5.6 and 2.4."""
    importance = torch.zeros(2, 20)
    importance[0, :6], importance[1, :2] = 1.0, 0.9
    assert Adaptive().adapt(importance, [12, 12], floor=8) == [14, 10]
    assert Adaptive(alpha=1.0).adapt(importance, [12, 12], floor=8) == [12, 12]


def test_head_scores_above_the_floor_follow_the_score() -> None:
    """B = 10, beta 2: floor 5 and a pool of 5 * 2 heads, split 3:1."""
    own = BudgetRequest(10, 100, 1, 2, 0, np.array([[3.0, 1.0]]))
    assert HeadScore(beta=2.0).capacities(own).tolist() == [[13, 7]]


def test_retrieval_heads_stay_whole_as_far_as_the_budget_goes() -> None:
    """3 heads, 40 entries each of 100: 12 each for a start leaves 84 of 88 a head: none; at 60, one is full."""
    scores = np.array([[0.1, 0.9, 0.5]])
    assert RetrievalFull().capacities(BudgetRequest(40, 100, 1, 3, 12, scores)).tolist() == [[40, 40, 40]]
    assert RetrievalFull().capacities(BudgetRequest(60, 100, 1, 3, 12, scores)).tolist() == [[40, 100, 40]]


def test_options_out_of_range_are_quoted() -> None:
    with pytest.raises(OptionError, match="beta is 0.5, need more than 1"):
        HeadScore(beta=0.5)
    with pytest.raises(OptionError, match="alpha is 2, need 0 to 1"):
        Adaptive(alpha=2)
    with pytest.raises(OptionError, match="compat is 'theirs', known is 'headkv'"):
        HeadScore(compat="theirs")
    with pytest.raises(OptionError, match="compat is 'theirs', known are 'pyramidkv' and 'headkv'"):
        Pyramid(compat="theirs")
    with pytest.raises(OptionError, match="the allocator head-score needs head scores"):
        HeadScore().capacities(BudgetRequest(10, 100, 1, 2))


def test_razors_share_of_full_heads_is_met_where_the_budget_allows_it() -> None:
    scores = np.arange(40.0).reshape(2, 20)
    wide = RetrievalFull(most_full=0.15).capacities(BudgetRequest(400, 1000, 2, 20, floor=4, head_scores=scores))
    assert (wide == 1000).sum() == 6  # 15 % of 40, those of the highest scores
    assert (wide.ravel()[-6:] == 1000).all()
    assert wide.sum() == 400 * 40
    narrow = RetrievalFull(most_full=0.15).capacities(BudgetRequest(40, 1000, 2, 20, floor=4, head_scores=scores))
    assert (narrow == 1000).sum() == (40 * 40 - 10 * 40) // 990  # the others keep a quarter of the budget
    assert narrow.sum() == 40 * 40


def test_a_share_of_full_heads_beyond_all_of_them_is_refused() -> None:
    with pytest.raises(OptionError, match="most_full is 1.5, need more than 0 and at most 1"):
        RetrievalFull(most_full=1.5)

"""Curves, areas and what they say, by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headprobe.evaluation.knockout.bench import Outcome
from headprobe.evaluation.knockout.verdict import KnockoutCurve
from headprobe.evaluation.referee.curves import Curve, random_orders


def left(*answered: Sequence[float], steps: tuple[int, ...] = (2, 4)) -> KnockoutCurve:
    """What is left of each prompt at 0 heads (all of it) and at each step."""
    rows = [tuple(map(float, row)) for row in ([1.0] * len(answered[0]), *answered)]
    whole, *others = (Outcome(row, row, row, None, None) for row in rows)
    return KnockoutCurve(whole, steps, tuple(others))


def needles(count: int) -> list[str]:
    return [f"needle-{number}" for number in range(count)]


def test_areas_are_those_of_trapezes_over_the_number_of_heads() -> None:
    curve = Curve.of(left([1, 0], [1, 0]), [left([1, 1], [0, 0]), left([1, 0], [1, 1])], needles(2))
    assert curve.heads == (0, 2, 4)
    assert curve.left == (1.0, 0.5, 0.5)
    assert curve.random == (1.0, 0.75, 0.5)
    assert curve.area.mean == pytest.approx((1.0 + 0.25) / 2)  # the first prompt loses nothing, the second all at 2
    assert curve.draws == pytest.approx((0.75, 0.75))
    assert curve.random_area.mean == pytest.approx(0.75)
    assert curve.difference.mean == pytest.approx(0.125)
    assert (curve.area.low, curve.area.high) == pytest.approx((0.25, 1.0))


def test_intervals_of_differences_are_of_pairs() -> None:
    """Prompts that are easy or hard for all say nothing of the difference, which is 1/4 on each."""
    own = left([1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0])
    random = left([1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0])
    curve = Curve.of(own, [random], ["a", "a", "b", "b", "c", "d"])
    assert curve.difference.mean == pytest.approx(0.5 / 6)
    same = Curve.of(own, [own], needles(6))
    assert (same.difference.low, same.difference.high) == (0.0, 0.0)
    assert same.area.low is not None
    assert same.area.high is not None
    assert same.area.low < same.area.high


def test_one_needle_in_many_prompts_has_no_interval() -> None:
    curve = Curve.of(left([0] * 9, [0] * 9), [left([1] * 9, [1] * 9)], ["one"] * 9)
    assert curve.difference.mean == pytest.approx(0.75)
    assert (curve.difference.low, curve.area.low) == (None, None)
    assert curve.effect == "unclear"


def effect(own: Sequence[float], *draws: Sequence[float], judged: int = 1, count: int | None = None) -> str:
    """Of prompts that answer with one head off, or do not, with own and with random heads."""
    number = len(own) if count is None else count
    clusters = [f"needle-{place % number}" for place in range(len(own))]
    random = [left(draw, steps=(1,)) for draw in draws]
    return Curve.of(left(own, steps=(1,)), random, clusters, judged).effect


def test_a_difference_is_certain_where_the_interval_and_every_draw_show_it() -> None:
    dead, alive = [0.0] * 8, [1.0] * 8
    assert effect(dead, alive, alive) == "causal"
    assert effect(alive, dead, dead) == "reversed"
    assert effect(dead, alive, dead) == "unclear"
    assert effect(alive, dead, alive) == "unclear"


def test_below_five_needles_nothing_is_said() -> None:
    assert effect([0.0] * 8, [1.0] * 8, count=5) == "causal"
    assert effect([0.0] * 8, [1.0] * 8, count=4) == "unclear"


def test_no_causal_effect_is_said_where_a_tenth_is_ruled_out() -> None:
    """Of 30 needles of which none changed up to 3 / 30 may, of 29 more."""
    assert effect([1.0] * 30, [1.0] * 30) == "none"
    assert effect([1.0] * 29, [1.0] * 29) == "unclear"


def test_more_detectors_need_a_wider_interval() -> None:
    """Four of ten prompts die. A resample that has none of them comes up with 0.6 ** 10, which is 0.6 %."""
    own, random = [0.0] * 4 + [1.0] * 6, [1.0] * 10
    assert effect(own, random, judged=1) == "causal"
    assert effect(own, random, judged=1000) == "unclear"


def test_random_orders_have_another_head_of_the_same_layer_in_every_place() -> None:
    first = [(1, 0), (0, 1), (1, 5), (0, 0), (1, 7)]
    others = random_orders(first, 8, 3)
    assert len({tuple(other) for other in others}) == 3
    for other in others:
        assert [layer for layer, _ in other] == [1, 0, 1, 0, 1]
        assert len({*other, *first}) == 10  # none comes twice, and none of those that are taken out
    assert random_orders(first, 8, 3) == others


def test_where_a_layer_has_too_few_others_its_own_heads_come_last() -> None:
    first = [(2, 0), (2, 3), (2, 1)]
    for other in random_orders(first, 4, 5):
        assert other[0] == (2, 2)
        assert set(other[1:]) < set(first)
        assert len(set(other)) == 3

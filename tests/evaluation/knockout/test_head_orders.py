from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.evaluation.knockout.head_orders import HeadOrder, check_top, parse_top, steps_for
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores

GEOMETRY = ModelGeometry(3, 4, 2, 8, ("full_attention",) * 3)


def order_of(mean: list[list[float]], heads: str = "query") -> HeadOrder:
    table = np.array(mean)
    return HeadOrder.of(AnyScores(Path("a"), "duo", heads, table, None, None, None, None, None, False, (), ""))


def test_heads_go_by_score_and_equal_ones_by_place() -> None:
    order = order_of([[0.1, 0.5], [0.5, -1.0], [0.0, 0.9]])
    assert order.ranked == ((2, 1), (0, 1), (1, 0), (0, 0), (2, 0), (1, 1))
    assert (order.heads, order.width, order.num_scored) == ("query", 2, 4)


def test_a_kv_head_stands_for_all_query_heads_that_share_it() -> None:
    order = order_of([[0.1, 0.5], [0.5, 0.2], [0.0, 0.9]], "kv")
    assert order.query_heads(order.ranked[:2], GEOMETRY) == ((0, 2), (0, 3), (2, 2), (2, 3))
    assert order_of([[0.1] * 4] * 3).query_heads([(2, 1), (0, 3)], GEOMETRY) == ((0, 3), (2, 1))


def test_draws_are_other_heads_of_the_same_layers() -> None:
    mean = np.random.default_rng(0).random((5, 8))
    order = order_of(mean.tolist())
    for top in (1, 3, 7, 12):
        first = set(order.ranked[:top])
        for seed in range(20):
            drawn = order.draw(top, np.random.default_rng(seed))
            assert drawn is not None
            assert len(set(drawn)) == top
            assert not first & set(drawn)
            wanted, found = (Counter(layer for layer, _ in heads) for heads in (first, drawn))
            if max(wanted.values()) <= 4:
                assert found == wanted


def test_a_layer_with_too_few_others_takes_them_from_the_nearest() -> None:
    order = order_of([[0.0, 0.0, 0.0], [0.9, 0.8, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    for seed in range(10):
        drawn = order.draw(2, np.random.default_rng(seed))
        assert drawn is not None
        assert (1, 2) in drawn
        assert {layer for layer, _ in drawn} == {0, 1}  # 0 and 2 are as near, the lower comes first


def test_there_is_no_draw_where_too_few_heads_are_left() -> None:
    order = order_of([[0.1, 0.5], [0.5, 0.2]])
    assert order.draw(2, np.random.default_rng(0)) is not None
    assert order.draw(3, np.random.default_rng(0)) is None


@pytest.mark.parametrize(("top", "count", "due"), [
    (None, 1000, (1, 2, 5, 10, 20, 50)), (None, 48, (1, 2, 5, 10, 20, 48)), (None, 20, (1, 2, 5, 10, 20)),
    (None, 1, (1,)), ((7, 3, 7), 48, (3, 7)), ((48,), 48, (48,)),
])  # fmt: skip
def test_numbers_of_heads(top: tuple[int, ...] | None, count: int, due: tuple[int, ...]) -> None:
    assert steps_for(top, count) == due


@pytest.mark.parametrize("top", [(0,), (1, 49), (-1,)])
def test_a_number_of_heads_that_is_not_there_is_refused(top: tuple[int, ...]) -> None:
    with pytest.raises(
        OptionError, match=r"--top (0|49|-1) is out of range: need 1 to 48, the heads of the score file"
    ):
        check_top(top, 48)
    with pytest.raises(OptionError, match="65 numbers of heads, need 1 to 64"):
        check_top(range(1, 66), 100)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "1.5", "-1", "1_0", "٣", "9999999999"])
def test_text_that_is_no_number_of_heads_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="is not a number of heads"):
        parse_top(text)

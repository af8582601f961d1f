from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from headprobe.pictures.heatmap import RankLabel, place_ranks


def test_wide_cells_hold_their_number():
    assert place_ranks([(2, 1), (0, 3)], (4, 4), 20.0, 8.0) == [RankLabel(1, 1, 2), RankLabel(2, 3, 0)]


def test_narrow_cells_have_it_up_and_to_the_right():
    (label,) = place_ranks([(5, 5)], (10, 10), 10.0, 7.0)
    # half the width of one digit is (0.32 + 0.08) * 7 / 10 cells, half its height 0.44 * 7 / 10
    assert (label.rank, round(label.x, 3), round(label.y, 3)) == (1, 5 + 0.62 + 0.28, round(5 - 0.62 - 0.308, 3))
    assert not label.leader


def test_at_the_upper_right_corner_it_goes_down_and_to_the_left():
    (label,) = place_ranks([(0, 9)], (10, 10), 10.0, 7.0)
    assert label.x < 9
    assert label.y > 0


@given(
    heads=st.lists(st.tuples(st.integers(0, 19), st.integers(0, 15)), unique=True, max_size=60),
    cell=st.floats(9.0, 13.9),
)
def test_numbers_meet_neither_rings_nor_each_other(heads, cell):
    labels = place_ranks(heads, (20, 16), cell, 7.0)
    rings = [(head - 0.5, layer - 0.5, head + 0.5, layer + 0.5) for layer, head in heads]
    boxes = []
    for label in labels:
        half_width, half_height = 0.3 * len(str(label.rank)) * 7.0 / cell, 0.4 * 7.0 / cell
        boxes.append((label.x - half_width, label.y - half_height, label.x + half_width, label.y + half_height))
    assert len({label.rank for label in labels}) == len(labels)
    for box in boxes:
        assert min(box[0], box[1]) >= -0.5
        assert box[2] <= 15.5
        assert box[3] <= 19.5
    for a, b in itertools.chain(itertools.combinations(boxes, 2), itertools.product(boxes, rings)):
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]

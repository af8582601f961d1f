"""Where the rank of a ringed head is written, so that no two numbers meet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

INSIDE_FROM = 14.0  # points: a cell this wide holds its number
_NEAR = ((1, -1), (1, 1), (-1, -1), (-1, 1), (0, -1), (0, 1), (1, 0), (-1, 0))


@dataclass(frozen=True)
class RankLabel:
    """The number `rank` at `(x, y)` in cells, `x` along the heads; `leader` when it stands away from its ring."""

    rank: int
    x: float
    y: float
    leader: bool = False


def place_ranks(
    heads: Sequence[tuple[int, int]], shape: tuple[int, int], cell_points: float, font_points: float
) -> list[RankLabel]:
    """A label for each of the `heads` `(layer, head)`, best first.

    In wide cells the number stands inside. In narrow ones it stands beside the ring, at the nearest of a fixed
    series of places that is inside the map and touches no ring and no other number; a head without such a place
    goes without a number (the list beside the map names it).

    >>> place_ranks([(0, 1)], (4, 8), 40.0, 9.0)
    [RankLabel(rank=1, x=1, y=0, leader=False)]
    """
    if cell_points >= INSIDE_FROM:
        return [RankLabel(rank, head, layer) for rank, (layer, head) in enumerate(heads, 1)]
    taken = [(head - 0.6, layer - 0.6, head + 0.6, layer + 0.6) for layer, head in heads]
    labels: list[RankLabel] = []
    for rank, (layer, head) in enumerate(heads, 1):
        half_width = (0.32 * len(str(rank)) + 0.08) * font_points / cell_points
        half_height = 0.44 * font_points / cell_points
        for x, y, leader in _places(head, layer, half_width, half_height):
            box = (x - half_width, y - half_height, x + half_width, y + half_height)
            if _inside(box, shape) and not any(_meet(box, other) for other in taken):
                taken.append(box)
                labels.append(RankLabel(rank, x, y, leader))
                break
    return labels


def _places(head: int, layer: int, half_width: float, half_height: float) -> list[tuple[float, float, bool]]:
    return [
        (head + right * (0.62 + half_width + away), layer + down * (0.62 + half_height + away), away > 0)
        for away in (0.0, 1.0, 2.0, 3.0)
        for right, down in _NEAR
    ]


def _inside(box: tuple[float, float, float, float], shape: tuple[int, int]) -> bool:
    layers, heads = shape
    return box[0] >= -0.5 and box[1] >= -0.5 and box[2] <= heads - 0.5 and box[3] <= layers - 0.5


def _meet(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]

"""Which heads to switch off: the best of a ranking, and as many others drawn from the same layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.probes.plan import whole_numbers
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Head, rank_heads

DEFAULT_TOP = (1, 2, 5, 10, 20, 50)
MOST_STEPS = 64


@dataclass(frozen=True)
class HeadOrder:
    """Heads, the most important first. `heads` are `query` heads, or `kv` heads, which stand for all query heads that
    share them. `width`: how many of that kind a layer has; `num_scored`: so many of the first have a score above 0."""

    ranked: tuple[Head, ...]
    heads: str
    width: int
    num_scored: int

    @classmethod
    def of(cls, scores: AnyScores) -> HeadOrder:
        """The order of a score file, by falling score; equal scores go by layer, then head."""
        ranking = rank_heads(scores.mean)
        above = sum(score > 0 for _, _, score in ranking)
        return cls(tuple((layer, head) for layer, head, _ in ranking), scores.heads, scores.num_heads, above)

    def query_heads(self, heads: Sequence[Head], geometry: ModelGeometry) -> tuple[Head, ...]:
        """The query heads that `heads` of this order stand for, sorted."""
        if self.heads == "query":
            return tuple(sorted(heads))
        group = geometry.group_size
        return tuple(sorted((layer, group * head + i) for layer, head in heads for i in range(group)))

    def draw(self, top: int, generator: np.random.Generator) -> tuple[Head, ...] | None:
        """As many heads as the first `top`, none of them, from the same layers as far as these have others.

        Where a layer has too few, the rest comes from the layers nearest to it. None where fewer than `top` others are
        left in all layers.
        """
        first, others = set(self.ranked[:top]), self.ranked[top:]
        if len(others) < top:
            return None
        free: dict[int, list[Head]] = {}
        for head in sorted(others):
            free.setdefault(head[0], []).append(head)
        drawn: list[Head] = []
        short: list[int] = []
        for layer, wanted in sorted(Counter(layer for layer, _ in first).items()):
            taken = _take(free.get(layer, []), wanted, generator)
            drawn += taken
            short += [layer] * (wanted - len(taken))
        for layer in short:
            nearest = min((other for other in free if free[other]), key=lambda other: (abs(other - layer), other))
            drawn += _take(free[nearest], 1, generator)
        return tuple(sorted(drawn))


def _take(heads: list[Head], count: int, generator: np.random.Generator) -> list[Head]:
    """Up to `count` of `heads`, drawn and removed."""
    places = generator.permutation(len(heads))[:count].tolist()
    taken = [heads[place] for place in places]
    for head in taken:
        heads.remove(head)
    return taken


def check_top(top: Sequence[int] | None, count: int) -> None:
    """Raise `OptionError` for numbers of heads that cannot be switched off in a file of `count` heads."""
    if top is None:
        return
    if not 1 <= len(top) <= MOST_STEPS:
        raise OptionError(f"{len(top)} numbers of heads, need 1 to {MOST_STEPS}")
    for k in top:
        if not 1 <= k <= count:
            raise OptionError(f"--top {k} is out of range: need 1 to {count}, the heads of the score file")


def steps_for(top: Sequence[int] | None, count: int) -> tuple[int, ...]:
    """How many heads are switched off, rising; by default 1, 2, 5, 10, 20, 50, cut at all `count` of them.

    >>> steps_for(None, 48), steps_for((4, 2, 4), 48)
    ((1, 2, 5, 10, 20, 48), (2, 4))
    """
    check_top(top, count)
    return tuple(sorted({min(k, count) for k in (DEFAULT_TOP if top is None else top)}))


def parse_top(text: str) -> tuple[int, ...]:
    """Numbers of heads from text such as `1,2,5`. Raises `OptionError`.

    >>> parse_top("1, 5")
    (1, 5)
    """
    return whole_numbers(text, "--top {} is not a number of heads (write 5 or 1,2,5)")

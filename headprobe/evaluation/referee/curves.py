"""How fast answers die when heads are taken out in a detector's order, against random heads of the same layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from headprobe.evaluation.knockout.verdict import (
    CAUSAL,
    FEWEST_NEEDLES,
    MARGIN,
    NO_EVENT,
    NONE,
    REVERSED,
    UNCLEAR,
    KnockoutCurve,
    verdict_interval,
)
from headprobe.scores.head_scores import Head
from headprobe.scores.uncertainty import Estimate, estimate


def random_orders(first: Sequence[Head], heads_per_layer: int, draws: int) -> list[list[Head]]:
    """Random orders as long as `first`, the heads that are taken out, with a head of the same layer in every place.

    Heads of `first` come only where a layer has too few others, behind these: with one head that matters among them by
    chance, an order would be no comparison.

    >>> random_orders([(5, 1), (3, 0)], 2, 2)
    [[(5, 0), (3, 1)], [(5, 0), (3, 1)]]
    """
    return [_drawn(first, heads_per_layer, draw) for draw in range(draws)]


def _drawn(first: Sequence[Head], heads_per_layer: int, draw: int) -> list[Head]:
    left: dict[int, list[int]] = {}
    for layer in {layer for layer, _ in first}:
        own = {head for other, head in first if other == layer}
        mixed = np.random.default_rng([draw, layer]).permutation(heads_per_layer).tolist()
        left[layer] = sorted(mixed, key=lambda head: head in own)
    return [(layer, left[layer].pop(0)) for layer, _ in first]


@dataclass(frozen=True)
class Curve:
    """The share of answers that are left, in [0, 1], with the first `heads[i]` heads of an order taken out.

    `heads` begins with 0; `random`: the same with random heads of the same layers, a mean over draws. `area` is that
    under `left` over the number of heads, in [0, 1]: 1 where no answer dies, near 0 where all die at once;
    `random_area` that under `random`, of which `draws` lists each draw's; `difference` random minus own, on the same
    prompts. All with 95 % intervals, for which whole needles are drawn. `effect` is `causal` (the answers need these
    heads more than random ones), `none` (that much is ruled out), `reversed` or `unclear`.
    """

    heads: tuple[int, ...]
    left: tuple[float, ...]
    random: tuple[float, ...]
    area: Estimate
    random_area: Estimate
    difference: Estimate
    draws: tuple[float, ...]
    effect: str

    @classmethod
    def of(
        cls, own: KnockoutCurve, random: Sequence[KnockoutCurve], clusters: Sequence[str], num_judged: int = 1
    ) -> Curve:
        """From measured curves over the same prompts, `clusters` of which are drawn together. Where `num_judged`
        detectors are judged, the interval behind `effect` is as much wider."""
        areas = _areas(own)
        drawn = [_areas(curve) for curve in random]
        chance = [fmean(column) for column in zip(*drawn, strict=True)]
        apart = [a - b for a, b in zip(chance, areas, strict=True)]
        draws = tuple(fmean(each) for each in drawn)
        return cls(
            heads=(0, *own.steps),
            left=_shares(own),
            random=tuple(fmean(column) for column in zip(*map(_shares, random), strict=True)),
            area=estimate(areas, clusters),
            random_area=estimate(chance, clusters),
            difference=estimate(apart, clusters),
            draws=draws,
            effect=_effect(apart, [draw - fmean(areas) for draw in draws], clusters, num_judged),
        )

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "heads": list(self.heads),
            "left": list(self.left),
            "random": list(self.random),
            "area": self.area.record(),
            "random_area": self.random_area.record(),
            "difference": self.difference.record(),
            "draws": list(self.draws),
            "effect": self.effect,
        }


def _areas(curve: KnockoutCurve) -> tuple[float, ...]:
    areas = curve.areas()
    assert areas is not None  # whether a prompt is answered is always known
    return areas


def _shares(curve: KnockoutCurve) -> tuple[float, ...]:
    return tuple(fmean(outcome.answered) for outcome in (curve.whole, *curve.outcomes))


def _effect(apart: Sequence[float], gaps: Sequence[float], clusters: Sequence[str], num_judged: int) -> str:
    """As `headprobe.evaluation.knockout.verdict`: by needles the interval of `apart`, and every draw must show it."""
    num_needles, interval = len(set(clusters)), verdict_interval(apart, clusters, num_judged)
    if interval is None or num_needles < FEWEST_NEEDLES:
        return UNCLEAR
    low, high = interval
    if low > 0 and min(gaps) > 0:
        return CAUSAL
    if high < 0 and max(gaps) < 0:
        return REVERSED
    return NONE if max(high, NO_EVENT / num_needles) <= MARGIN else UNCLEAR

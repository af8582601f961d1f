"""What is left of a model when more and more heads of an order are off: a curve for each of any number of orders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import WHOLE, KnockoutBench, Outcome, Record, Records
from headprobe.scores.head_scores import Head


@dataclass(frozen=True)
class KnockoutCurve:
    """What is left when the first `k` heads of an order are off, for each `k` in `steps`; `whole`: with all heads."""

    whole: Outcome
    steps: tuple[int, ...]
    outcomes: tuple[Outcome, ...]

    def means(self, metric: str = "answered") -> list[float | None]:
        """The mean of one of `METRICS` at 0 heads and at each step."""
        return [outcome.mean(metric) for outcome in (self.whole, *self.outcomes)]

    def areas(self, metric: str = "answered") -> tuple[float, ...] | None:
        """For each prompt (or text) the area under its own curve, from 0 to the last step (trapezoids over `k`),
        divided by the last step; None where the metric cannot be had."""
        rows, places = [getattr(outcome, metric) for outcome in (self.whole, *self.outcomes)], (0, *self.steps)
        if None in rows:
            return None
        widths = [end - start for start, end in pairwise(places)]
        return tuple(
            sum((a + b) / 2 * width for (a, b), width in zip(pairwise(column), widths, strict=True)) / places[-1]
            for column in zip(*rows, strict=True)
        )

    def area(self, metric: str = "answered") -> float | None:
        """The area under the curve of the means, which is the mean of `areas`.

        For `answered` it is in [0, 1], and lower for an order that finds sooner the heads that matter.
        """
        areas = self.areas(metric)
        return None if areas is None else fmean(areas)


def knockout_curves(
    bench: KnockoutBench,
    orders: Mapping[str, Sequence[Head]],
    steps: Sequence[int],
    journal: Records | None = None,
    on_record: Callable[[Record], None] | None = None,
) -> dict[str, KnockoutCurve]:
    """For each order of query heads `(layer, head)` its curve at `steps` (rising, at most its length).

    All sets of all orders share batches, and equal sets are measured once. `steps` beyond the end of an order raise
    `OptionError`; otherwise as `KnockoutBench.measure`.
    """
    for name, order in orders.items():
        if not steps or not 1 <= min(steps) <= max(steps) <= len(order) or list(steps) != sorted(set(steps)):
            raise OptionError(
                f"steps {list(steps)!r:.60} do not rise from 1 to at most the {len(order)} of {name!r:.60}"
            )
    sets = {name: [tuple(sorted(order[:k])) for k in steps] for name, order in orders.items()}
    found = bench.measure([heads for each in sets.values() for heads in each], journal, on_record).outcomes
    return {
        name: KnockoutCurve(found[WHOLE], tuple(steps), tuple(found[heads] for heads in each))
        for name, each in sets.items()
    }

"""What switching heads off costs, with intervals, and what that says: the best heads against as many random ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

import numpy as np

from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import METRICS, WHOLE, KnockoutBench, Outcome, Record, Records
from headprobe.scores.head_scores import Head
from headprobe.scores.uncertainty import CONFIDENCE, Estimate, estimate, mean_intervals, numbered

FEWEST_NEEDLES = 5  # below, an interval over needles means nothing
MARGIN = 0.10  # of answered needles: what counts as no effect
SPECIFIC = 0.10  # nats per token by which plain text may suffer more than from random heads
NO_EVENT = 3.0  # of n needles none changed: up to 3 / n may, with 95 % confidence (Hanley and Lippman-Hand 1983)
CAUSAL, UNSPECIFIC, NONE, REVERSED, UNCLEAR = "causal", "unspecific", "none", "reversed", "unclear"


@dataclass(frozen=True)
class Step:
    """The first `k` heads of an order off (`num_off` query heads), against random others.

    `top`, `random` and `difference` map each of `METRICS` to an estimate with its 95 % interval: what is left (with
    random heads off the mean over the draws), and random minus top on the same prompts. `changes`: what is left minus
    what there is with all heads on, on the same prompts, for `top` and `random`. `draws`: each draw's mean.
    `verdict` `(low, high)`: the interval of the difference in `answered`, so wide that all steps of a run share 95 %;
    None where it cannot be had. Without as many other heads `random`, `difference`, `draws` and `verdict` are None.
    """

    k: int
    num_off: int
    top: dict[str, Estimate]
    random: dict[str, Estimate] | None
    difference: dict[str, Estimate] | None
    draws: dict[str, list[float]] | None
    changes: dict[str, dict[str, Estimate]]
    verdict: tuple[float, float] | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "k": self.k,
            "num_off": self.num_off,
            "top": _records(self.top),
            "random": None if self.random is None else _records(self.random),
            "difference": None if self.difference is None else _records(self.difference),
            "changes": {name: _records(estimates) for name, estimates in self.changes.items()},
            "draws": self.draws,
        }


@dataclass(frozen=True)
class Sides:
    """What one step was measured to leave: with all heads on, without the best, and without each draw of random ones
    (none where too few are left)."""

    whole: Outcome
    top: Outcome
    random: Sequence[Outcome]


@dataclass(frozen=True)
class Verdict:
    """`effect`: `causal`, `unspecific` (plain text suffers too), `none`, `reversed` or `unclear`; `text` says it."""

    effect: str
    text: str


def make_step(k: int, num_off: int, sides: Sides, clusters: Sequence[str], num_steps: int) -> Step:
    """The figures of one step; `clusters` says for each prompt what it is drawn with. Where `num_steps` are looked at,
    the verdict's interval is as much wider."""
    top, drawn = sides.top, {metric: _mean_of(sides.random, metric) for metric in METRICS}
    left = {"top": {metric: getattr(top, metric) for metric in METRICS}} | ({"random": drawn} if sides.random else {})
    changes = {
        name: {m: _estimate(_apart(values[m], getattr(sides.whole, m)), clusters) for m in METRICS}
        for name, values in left.items()
    }
    estimates = {name: {m: _estimate(values[m], clusters) for m in METRICS} for name, values in left.items()}
    if not sides.random:
        return Step(k, num_off, estimates["top"], None, None, None, changes, None)
    apart = {metric: _apart(drawn[metric], getattr(top, metric)) for metric in METRICS}
    return Step(
        k=k,
        num_off=num_off,
        top=estimates["top"],
        random=estimates["random"],
        difference={metric: _estimate(values, clusters) for metric, values in apart.items()},
        draws={m: [fmean(getattr(each, m)) for each in sides.random] for m in METRICS if drawn[m] is not None},
        changes=changes,
        verdict=verdict_interval(apart["answered"] or (), clusters, num_steps),
    )


def whole_estimates(whole: Outcome, clusters: Sequence[str]) -> dict[str, Estimate]:
    """Each of `METRICS` with all heads on."""
    return {metric: _estimate(getattr(whole, metric), clusters) for metric in METRICS}


def _records(estimates: dict[str, Estimate]) -> dict[str, Any]:
    return {metric: found.record() for metric, found in estimates.items()}


def _estimate(values: Sequence[float] | None, clusters: Sequence[str]) -> Estimate:
    """The mean with its interval; texts are drawn one by one, prompts by needle."""
    if values is None:
        return Estimate()
    return estimate(values, clusters if len(values) == len(clusters) else [str(i) for i in range(len(values))])


def _mean_of(outcomes: Sequence[Outcome], metric: str) -> tuple[float, ...] | None:
    """By prompt (or text) the mean over the outcomes."""
    rows = [getattr(outcome, metric) for outcome in outcomes]
    return None if None in rows or not rows else tuple(fmean(column) for column in zip(*rows, strict=True))


def _apart(first: Sequence[float] | None, second: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if first is None or second is None else tuple(a - b for a, b in zip(first, second, strict=True))


def verdict_interval(values: Sequence[float], clusters: Sequence[str], num_steps: int) -> tuple[float, float] | None:
    """The interval of a mean difference, so wide that `num_steps` of them share 95 %; None with only one cluster.

    Ends are rounded to 12 places: whether one is 0 decides, and sums of floats come out beside it.
    """
    groups = numbered(clusters)
    if not groups.any():
        return None
    confidence = 1 - (1 - CONFIDENCE) / num_steps
    ((low, high),) = mean_intervals([np.asarray(values, dtype=np.float64)], groups, confidence)
    return round(low, 12), round(high, 12)


# -- in words -------------------------------------------------------------------------------------------------------


def verdict_of(whole: dict[str, Estimate], steps: Sequence[Step], num_needles: int, guessing: float) -> Verdict:
    """What the steps say. The largest certain difference decides: one whose interval, wide enough for all steps
    together, leaves out 0, and that every draw shows.

    `guessing`: the loss of guessing evenly, in nats per token. A model whose loss on plain text is no lower does not
    know such text, so that it is no control.
    """
    known = [step for step in steps if step.verdict is not None and step.difference is not None]
    text = _Text(whole, guessing)
    if num_needles < FEWEST_NEEDLES or not known:
        return Verdict(UNCLEAR, f"Cannot be said with {_needles(num_needles)}: {_why_not(num_needles)}.")
    certain = [step for step in known if step.verdict is not None and step.verdict[0] > 0 and _is_beyond(step, -1)]
    if certain:
        return _causal(whole, max(certain, key=_gap), text)
    against = [step for step in known if step.verdict is not None and step.verdict[1] < 0 and _is_beyond(step, 1)]
    if against:
        step = min(against, key=_gap)
        return Verdict(REVERSED, f"The order is worse than chance: {_costs(whole, step)}. {text.told(step)}")
    most = max(max(step.verdict[1], NO_EVENT / num_needles) for step in known if step.verdict is not None)
    last = known[-1]
    if most <= MARGIN:
        told = f"No causal effect: {_costs(whole, last)}; a difference above {100 * most:.0f} is ruled out."
        return Verdict(NONE, f"{told} {text.told(last)}")
    widest = max(known, key=lambda step: abs(_gap(step)))
    low, high = widest.verdict or (0.0, 0.0)
    high = max(high, NO_EVENT / num_needles)
    told = f"{_costs(whole, widest)}, a difference of {_points(_gap(widest))} ({_points(low)} to {_points(high)})"
    return Verdict(UNCLEAR, f"Cannot be said with {_needles(num_needles)}: {told}. More needles would tell.")


def _is_beyond(step: Step, sign: int) -> bool:
    """Whether what the best heads leave lies on this side of what every single draw leaves: needles are drawn in the
    intervals, draws are not."""
    top = step.top["answered"].mean or 0.0
    return all(sign * (top - draw) > 0 for draw in (step.draws or {}).get("answered", []))


def _causal(whole: dict[str, Estimate], step: Step, text: _Text) -> Verdict:
    """The best heads matter; whether for retrieval alone says the plain text."""
    assert step.difference is not None
    assert step.verdict is not None
    low, high = (_points(end) for end in step.verdict)
    told = f"The heads matter: {_costs(whole, step)} (difference {low} to {high}). {text.told(step)}"
    return (
        Verdict(UNSPECIFIC, f"{told} So they do more than retrieve.") if text.suffers(step) else Verdict(CAUSAL, told)
    )


@dataclass(frozen=True)
class _Text:
    """The control: what the same heads cost on text that needs no retrieval."""

    whole: dict[str, Estimate]
    guessing: float

    @property
    def is_known(self) -> bool:
        loss = self.whole["text_loss"].mean
        return loss is not None and loss < self.guessing

    def told(self, step: Step) -> str:
        loss = self.whole["text_loss"].mean or 0.0
        if not self.is_known:
            return f"Plain text is no control here: the model does not know it ({loss:.1f} nats per token)."
        top, random = (_rise(self.whole, side) for side in (step.top, step.random or {}))
        return f"The loss on plain text ({loss:.2f} nats per token) changes by {top}, with random ones off by {random}."

    def suffers(self, step: Step) -> bool:
        apart = Estimate() if step.difference is None else step.difference["text_loss"]
        return self.is_known and apart.high is not None and apart.high < 0 and (apart.mean or 0.0) < -SPECIFIC


def _rise(whole: dict[str, Estimate], side: dict[str, Estimate]) -> str:
    change = round(-_cost(whole, side, "text_loss"), 2)
    return f"{change or 0.0:+.2f}"


def _costs(whole: dict[str, Estimate], step: Step) -> str:
    """`removing the top 5 costs 80 points, random ones 2`, of 100 that all heads have."""
    top, random = (_cost(whole, side, "answered") for side in (step.top, step.random or {}))
    heads = "top head" if step.k == 1 else f"top {step.k}"
    other = "a random one" if step.k == 1 else "random ones"
    return f"removing the {heads} costs {_points(top)} points, {other} {_points(random)}"


def _cost(whole: dict[str, Estimate], side: dict[str, Estimate], metric: str) -> float:
    return (whole[metric].mean or 0.0) - (side[metric].mean or 0.0)


def _gap(step: Step) -> float:
    return 0.0 if step.difference is None else step.difference["answered"].mean or 0.0


def _points(share: float) -> str:
    return f"{100 * share:.0f}".replace("-0", "0") if round(100 * share) == 0 else f"{100 * share:.0f}"


def _needles(count: int) -> str:
    return f"{count} answered needle" if count == 1 else f"{count} answered needles"


def _why_not(count: int) -> str:
    if count < FEWEST_NEEDLES:
        return f"needs at least {FEWEST_NEEDLES} different ones"
    return "no step leaves as many other heads to compare with"


# What is left of a model when more and more heads of an order are off: a curve for each of any number of orders.


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

"""What a referee found: for each detector its heads, their curve, what their budgets keep; and who agrees with whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np

from headprobe.scores.head_scores import Floats, rank_heads
from headprobe.scores.ranks import spearman, top_k_overlap
from headprobe.stages import stage_record

Head = tuple[int, int]
Answers = Callable[[Sequence[Head]], Sequence[bool]]
EVEN, NOISE = "even", "random"  # budgets that no detector guides
TOP = 20
NUM_SHOWN = 10

# How fast answers die when heads are taken out in an order.


@dataclass(frozen=True)
class Curve:
    """The share of answers that are left, in [0, 1], with the first `heads[i]` heads of an order taken out.

    `heads` begins with 0; `random`: the same for random heads of the same layers, a mean over draws.
    """

    heads: tuple[int, ...]
    left: tuple[float, ...]
    random: tuple[float, ...]

    @property
    def area(self) -> float:
        """The area under `left` over the number of heads, in [0, 1]: 1 where no answer dies, near 0 where all do at
        once.

        >>> Curve((0, 1, 3), (1.0, 0.5, 0.0), (1.0, 1.0, 1.0)).area
        0.4166666666666667
        """
        return _area(self.heads, self.left)

    @property
    def random_area(self) -> float:
        """The area under `random`."""
        return _area(self.heads, self.random)


def _area(heads: Sequence[int], left: Sequence[float]) -> float:
    parts = [(b - a) * (x + y) / 2 for a, b, x, y in zip(heads, heads[1:], left, left[1:], strict=False)]
    return sum(parts) / heads[-1]


def knockout_curve(
    order: Sequence[Head], heads_per_layer: int, counts: Sequence[int], draws: int, answers: Answers
) -> Curve:
    """Take out the first heads of `order`, at each of `counts`, and random ones of the same layers beside them.

    A random order has in every place a head of the same layer: the heads of each layer change places, as often as
    `draws` says. `answers` says for each prompt whether the model still answers without some heads.
    """
    shuffled = [_shuffled(order, heads_per_layer, draw) for draw in range(draws)]
    ks = (0, *counts)
    left = tuple(_share(answers(order[:k])) for k in ks)
    random = tuple(fmean(_share(answers(other[:k])) for other in shuffled) for k in ks)
    return Curve(ks, left, random)


CurveFunction = Callable[[Sequence[Head], int, Sequence[int], int, Answers], Curve]


def _shuffled(order: Sequence[Head], heads_per_layer: int, draw: int) -> list[Head]:
    places = {}
    for layer in {layer for layer, _ in order}:
        places[layer] = np.random.default_rng([draw, layer]).permutation(heads_per_layer)
    return [(layer, int(places[layer][head])) for layer, head in order]


def _share(answered: Sequence[bool]) -> float:
    return sum(answered) / len(answered)


# What was found of one detector, and of all.


@dataclass(frozen=True, eq=False)
class Verdict:
    """One detector on one model. `mean` `[L, H]` is None where no trial counted, and `reason` says why.

    `seconds` is the wall time of the run, which the detectors in `shares` had in common; None where it was interrupted.
    `budgets`: by mean entries per KV head the share of answers left when its scores divide the budget.
    """

    name: str
    needles: str | None
    trials: int
    passed: int
    seconds: float | None
    shares: tuple[str, ...]
    mean: Floats | None = None
    reason: str | None = None
    recall: Mapping[int, float] | None = None
    curve: Curve | None = None
    budgets: Mapping[int, float] | None = None

    @property
    def order(self) -> list[Head]:
        """All heads, best first."""
        assert self.mean is not None
        return [(layer, head) for layer, head, _ in rank_heads(self.mean)]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        curve = self.curve
        return {
            "name": self.name,
            "needles": self.needles,
            "trials": self.trials,
            "passed": self.passed,
            "seconds": self.seconds,
            "shares_run_with": list(self.shares),
            "reason": self.reason,
            "top_heads": [] if self.mean is None else [list(head) for head in self.order[:NUM_SHOWN]],
            "recall": None if self.recall is None else {str(k): found for k, found in self.recall.items()},
            "knockout": None
            if curve is None
            else {
                "heads": list(curve.heads),
                "left": list(curve.left),
                "random": list(curve.random),
                "area": curve.area,
                "random_area": curve.random_area,
            },
            "left_at_budget": None if self.budgets is None else {str(b): left for b, left in self.budgets.items()},
        }


def recall_at(order: Sequence[Head], known: Sequence[Head], counts: Sequence[int]) -> dict[int, float]:
    """The share of the `known` heads among the first k of an order, for each k.

    >>> recall_at([(0, 1), (0, 0), (1, 1)], [(0, 1), (1, 1)], (2, 3))
    {2: 0.5, 3: 1.0}
    """
    return {k: len(set(order[:k]) & set(known)) / len(known) for k in counts}


@dataclass(frozen=True, eq=False)
class RefereeResult:
    """All detectors on one model; `baselines`: by name and budget the share of answers left without a detector."""

    model: str
    facts: Mapping[str, Any]
    asked: int
    answered: int
    verdicts: tuple[Verdict, ...]
    baselines: Mapping[str, Mapping[int, float]]
    stages: Mapping[str, float] = field(default_factory=stage_record)

    @property
    def scored(self) -> list[Verdict]:
        """Those detectors that scored heads."""
        return [verdict for verdict in self.verdicts if verdict.mean is not None]

    @property
    def top(self) -> int:
        """For how many of the best heads the overlap is counted."""
        sizes = [verdict.mean.size for verdict in self.verdicts if verdict.mean is not None]
        return min([TOP, *(size - 1 for size in sizes)])

    def agreement(self) -> tuple[Floats, Floats]:
        """Spearman over all heads, and how many of the best heads are shared, each `[D, D]` over `scored`.

        Spearman is NaN where a detector gives all heads the same score.
        """
        tables = [verdict.mean for verdict in self.verdicts if verdict.mean is not None]
        ranks = [[spearman(a, b) for b in tables] for a in tables]
        shared = [[top_k_overlap(a, b, self.top) for b in tables] for a in tables]
        return np.array(ranks, dtype=np.float64), np.array(shared, dtype=np.float64)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        ranks, shared = self.agreement()
        return {
            "schema": "headprobe-referee/1",
            "model": self.model,
            **self.facts,
            "prompts": self.asked,
            "prompts_answered": self.answered,
            "detectors": [verdict.record() for verdict in self.verdicts],
            "baselines": {name: {str(b): left for b, left in found.items()} for name, found in self.baselines.items()},
            "agreement": {
                "detectors": [verdict.name for verdict in self.scored],
                "spearman": [[None if np.isnan(value) else value for value in row] for row in ranks.tolist()],
                "top": self.top,
                "shared": shared.tolist(),
            },
            "stages": dict(self.stages),
        }

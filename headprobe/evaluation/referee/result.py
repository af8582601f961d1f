"""What a referee found: for each detector its heads, their curve, what their budgets keep; and who agrees with whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from headprobe.evaluation.knockout.bench import GATE
from headprobe.evaluation.referee.curves import Curve
from headprobe.scores.head_scores import Floats, Head, rank_heads
from headprobe.scores.ranks import spearman, top_k_overlap
from headprobe.stages import stage_record

SCHEMA = "headprobe-referee/2"
EVEN, NOISE = "even", "random"  # budgets that no detector guides
TOP = 20
NUM_SHOWN = 10

# What was found of one detector, and of all.


@dataclass(frozen=True, eq=False)
class Verdict:
    """One detector on one model. `mean` `[L, H]` is None where no trial counted, and `reason` says why.

    `seconds` is the wall time of the run, which the detectors in `shares` had in common; None where it was interrupted,
    or the scores come from `file`, a score file that was there before.
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
    file: str | None = None

    @property
    def order(self) -> list[Head]:
        """All heads, best first."""
        assert self.mean is not None
        return [(layer, head) for layer, head, _ in rank_heads(self.mean)]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "name": self.name,
            "needles": self.needles,
            "trials": self.trials,
            "passed": self.passed,
            "seconds": self.seconds,
            "scores_file": self.file,
            "shares_run_with": list(self.shares),
            "reason": self.reason,
            "top_heads": [] if self.mean is None else [list(head) for head in self.order[:NUM_SHOWN]],
            "recall": None if self.recall is None else {str(k): found for k, found in self.recall.items()},
            "knockout": None if self.curve is None else self.curve.record(),
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
    """All detectors on one model.

    Of `asked` fresh prompts `answered` are answered with all heads; `needles`: different ones in these; `baselines`: by
    name and budget the share of answers left without a detector.
    """

    model: str
    facts: Mapping[str, Any]
    asked: int
    answered: int
    verdicts: tuple[Verdict, ...]
    baselines: Mapping[str, Mapping[int, float]]
    needles: int = 0
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
            "schema": SCHEMA,
            "model": self.model,
            **self.facts,
            "prompts": self.asked,
            "prompts_answered": self.answered,
            "needles_answered": self.needles,
            "gate": GATE.record(),
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

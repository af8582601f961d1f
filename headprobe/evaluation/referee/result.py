"""What a referee found: for each detector its heads, their curve, what their budgets keep; who agrees; its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.evaluation.knockout.bench import GATE, KnockoutBench
from headprobe.evaluation.knockout.checks import RecordCheck
from headprobe.evaluation.knockout.switched_off import HeadSet
from headprobe.evaluation.referee.curves import Curve
from headprobe.models.catalog import short_name
from headprobe.profiling.journal import Check, Journal, check_journal
from headprobe.scores.files import check_place, refuse_one_place
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


# Where a referee writes: its parts as they come, what is made of them, and the detectors' score files.

PARTS, KNOCKOUT, RESULT, TABLE, PICTURE = "parts.jsonl", "knockout.jsonl", "referee.json", "referee.md", "referee.png"
SCORES = "scores"


@dataclass(frozen=True)
class RefereeFolder:
    """`parts.jsonl` and `knockout.jsonl` are the run itself, beside the score files in `scores/`; all else is made from
    them."""

    path: Path

    @classmethod
    def default(cls, model: str) -> RefereeFolder:
        """`evals/referee--<model>`."""
        return cls(Path("evals") / f"referee--{short_name(model).replace('/', '--')}")

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.path / name

    def scores(self, method: str) -> Path:
        """The score file of a detector that is scored here."""
        return self.path / SCORES / f"{method}.json"

    def check(
        self,
        scored: Sequence[str],
        *,
        resume: bool,
        overwrite: bool,
        inputs: Mapping[str, Path | str | None],
    ) -> None:
        """Refuse what would fail, or lose a file, before the long work begins; `scored`: detectors that get a file.

        Raises as `GridFolder.check`.
        """
        journals, derived = (PARTS, KNOCKOUT), (RESULT, TABLE, PICTURE)
        places = {name: self.file(name) for name in (*journals, *derived)}
        places |= {f"{SCORES}/{name}.json": self.scores(name) for name in scored}
        refuse_one_place({f"the output's {name}": place for name, place in places.items()}, inputs)
        held = [
            check_journal(self.file(name), resume=resume, overwrite=overwrite, holding="a run") for name in journals
        ]
        for name in derived:
            check_place(self.file(name), overwrite or (resume and any(held)))

    def journal(self, plan: Mapping[str, Any], check: Check, *, resume: bool, overwrite: bool) -> Journal:
        """The parts so far, to be added to; without `resume` those of an older run are forgotten.

        Raises as `Journal.open`.
        """
        journal = Journal.open(self.file(PARTS), plan, resume=resume, overwrite=overwrite, check=check)
        if not resume:
            self.file(KNOCKOUT).unlink(missing_ok=True)
        return journal

    def knockout(self, bench: KnockoutBench, sets: Sequence[HeadSet]) -> Journal:
        """What was measured of these sets of heads so far. Raises as `Journal.resume`."""
        return Journal.resume(self.file(KNOCKOUT), bench.describe(sets), RecordCheck(bench, sets))

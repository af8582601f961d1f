"""The share of the full cache's score that a compressed one keeps, and what that proves; the smallest such cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log
from statistics import fmean
from typing import Any

import numpy as np

from headprobe.errors import NoPassingTrialError
from headprobe.evaluation.trials import Row
from headprobe.scores.uncertainty import CONFIDENCE, SEED, draws, numbered

FULL = "full"
ROUNDING = 1e-9  # 0.9 of ten prompts is 0.9
KEPT, LOST, UNKNOWN = "kept", "lost", "cannot tell"


@dataclass(frozen=True)
class Kept:
    """The share of the full cache's score that a cache keeps on `num_prompts` prompts in `num_clusters` clusters.

    `low`, `high`: each a one-sided bound with 95 % confidence; `score` and `full_score` in [0, 1], sets weighing alike.
    """

    share: float
    low: float
    high: float
    score: float
    full_score: float
    num_prompts: int
    num_clusters: int

    @classmethod
    def of(cls, rows: Sequence[Row], full: Sequence[Row], seed: int = SEED) -> Kept:
        """What `rows` keep of `full`, prompt by prompt. Draws in which the full cache scores 0 count as nothing kept.

        Raises `NoPassingTrialError` where the full cache scores 0 on all prompts.
        """
        sizes = {name: sum(row["set"] == name for row in full) for name in {row["set"] for row in full}}
        weights = np.array([1 / (len(sizes) * sizes[row["set"]]) for row in full])
        ours = weights * [row["score"] for row in rows]
        theirs = weights * [row["score"] for row in full]
        if theirs.sum() <= 0:
            raise NoPassingTrialError(
                f"the model answers nothing here: the full cache scores 0 on all {len(full)} prompts, so that there is "
                "nothing to keep"
            )
        cluster = numbered([row["cluster"] for row in full])
        kept, whole = np.bincount(cluster, ours), np.bincount(cluster, theirs)
        found = []
        for times in draws(len(whole), seed=seed):
            top, bottom = times @ kept, times @ whole
            found.append(np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0))
        low, high = np.quantile(np.concatenate(found), [1 - CONFIDENCE, CONFIDENCE])
        share = float(ours.sum() / theirs.sum())
        return cls(
            share, min(float(low), share), max(float(high), share), float(ours.sum()), float(theirs.sum()), len(full),
            len(whole),
        )  # fmt: skip

    def keeps(self, keep: float) -> bool:
        """Whether the lower bound reaches `keep`."""
        return self.low >= keep - ROUNDING

    def verdict(self, keep: float) -> tuple[str, str]:
        """Whether `keep` of the score stays: `kept`, `lost` or `cannot tell`; and why, in words.

        The bootstrap knows only of losses that were seen. Where a cluster loses all with the probability
        `1 - keep`, `n` of them show no loss with `keep ** n`: fewer than `least_clusters` cannot prove anything.
        """
        seen = f"{percent(self.share)} of the full score, with {percent(CONFIDENCE)} confidence at least"
        seen += f" {percent(self.low)}, on {self.num_prompts} prompts in {self.num_clusters} clusters"
        if self.high < keep - ROUNDING:
            return LOST, seen
        if not self.keeps(keep):
            return UNKNOWN, f"{seen}: less than {percent(keep)} cannot be ruled out; more prompts would narrow it"
        need = least_clusters(keep)
        if need is None:
            return UNKNOWN, f"{seen}; that nothing at all is ever lost no number of prompts can prove"
        if self.num_clusters < need:
            return UNKNOWN, (
                f"{seen}; but a loss that is too rare to show up on {self.num_clusters} clusters may be larger than "
                f"{percent(1 - keep)}: {need} clusters held out would prove it"
            )
        return KEPT, seen


def least_clusters(keep: float) -> int | None:
    """How many clusters without any loss it takes to rule out, with 95 % confidence, that more than `1 - keep` is lost.

    >>> least_clusters(0.97), least_clusters(0.9), least_clusters(1.0)
    (99, 29, None)
    """
    return None if keep >= 1 else max(1, ceil(log(1 - CONFIDENCE) / log(keep)))


def percent(share: float) -> str:
    """A share in percent, to a tenth.

    >>> percent(0.97), percent(0.9714)
    ('97 %', '97.1 %')
    """
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


@dataclass(frozen=True)
class Candidate:
    """A policy at a budget. `on_calibration`: what it keeps there, None where memory ran out; `evicts`: whether any of
    those prompts is longer than the budget; `kv_bytes` and `kv_entries`: means over them, with their share of the full
    cache's entries."""

    label: str
    budget: int
    on_calibration: Kept | None
    evicts: bool = True
    kv_bytes: float | None = None
    kv_entries: float | None = None
    entries_share: float | None = None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        kept = None if self.on_calibration is None else dict(vars(self.on_calibration))
        return {**vars(self), "on_calibration": kept}


def candidates_of(rows: Sequence[Row]) -> list[Candidate]:
    """Policies and budgets in the rows of calibration prompts, the smallest cache first. Raises as `Kept.of`."""
    full = in_order([row for row in rows if row["policy"] == FULL])
    pairs = dict.fromkeys((row["policy"], row["budget"]) for row in rows if row["policy"] != FULL)
    found = [_candidate(name, budget, rows, full) for name, budget in pairs]
    return sorted(found, key=_by_size)


def _by_size(candidate: Candidate) -> tuple[bool, float, float]:
    kept = candidate.on_calibration
    return kept is None, candidate.kv_bytes or 0.0, 0.0 if kept is None else -kept.share


def _candidate(label: str, budget: int, rows: Sequence[Row], full: Sequence[Row]) -> Candidate:
    own = in_order([row for row in rows if (row["policy"], row["budget"]) == (label, budget)])
    if any(row["error"] is not None for row in (*own, *full)) or len(own) != len(full):
        return Candidate(label, budget, None)
    entries, whole, held = (fmean(row[name] for row in own) for name in ("kv_entries", "full_kv_entries", "kv_bytes"))
    evicts = any(row["evicts"] for row in own)
    return Candidate(label, budget, Kept.of(own, full), evicts, held, entries, entries / whole)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows by prompt."""
    return sorted(rows, key=lambda row: str(row["prompt"]))


def smallest(found: Sequence[Candidate], keep: float) -> Candidate | None:
    """The first of the candidates, which rise in size, that evicts and keeps so much with 95 % confidence, or None."""
    enough = (c for c in found if c.on_calibration is not None and c.on_calibration.keeps(keep))
    return next((candidate for candidate in enough if candidate.evicts), None)

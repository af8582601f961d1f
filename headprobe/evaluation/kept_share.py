"""The share of the full cache's score that a compressed one keeps, how sure that is, and what it proves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log

import numpy as np

from headprobe.errors import NoPassingTrialError
from headprobe.evaluation.task_trial import Row
from headprobe.scores.uncertainty import CONFIDENCE, SEED, draws, numbered

KEPT, LOST, UNKNOWN = "kept", "lost", "cannot tell"


@dataclass(frozen=True)
class Kept:
    """The share of the full cache's score that a cache keeps on `num_prompts` prompts of `num_clusters` texts.

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

    def verdict(self, keep: float) -> tuple[str, str]:
        """Whether `keep` of the score stays: `kept`, `lost` or `cannot tell`; and why, in words.

        The bootstrap knows only of losses that were seen. Where one text in so many loses its answer, `n` texts show
        none of it with a probability of `share ** n`: fewer than `least_clusters` cannot prove anything.
        """
        seen = f"{percent(self.share)} of the full score, with {percent(CONFIDENCE)} confidence at least"
        seen += f" {percent(self.low)}, on {self.num_prompts} prompts of {self.num_clusters} texts"
        if self.high < keep:
            return LOST, seen
        if self.low < keep:
            return UNKNOWN, f"{seen}: less than {percent(keep)} cannot be ruled out; more prompts would narrow it"
        need = least_clusters(keep)
        if need is None:
            return UNKNOWN, f"{seen}; that nothing at all is ever lost no number of prompts can prove"
        if self.num_clusters < need:
            return UNKNOWN, (
                f"{seen}; but a loss that is too rare to show up on {self.num_clusters} texts may be larger than "
                f"{percent(1 - keep)}: {need} texts held out would prove it"
            )
        return KEPT, seen


def least_clusters(keep: float) -> int | None:
    """How many texts without any loss it takes to rule out, with 95 % confidence, that more than `1 - keep` is lost.

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

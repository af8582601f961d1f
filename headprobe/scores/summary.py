"""The figures that describe a score file, and which of its trials are one and the same measurement."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats, rank_heads
from headprobe.scores.uncertainty import CONFIDENCE, ClusteredTrials

# Which trials of a file are one and the same measurement.


@dataclass(frozen=True)
class DistinctTrials:
    """Trials with the same scores in every head count as one, whatever they are called.

    `groups` holds the trials' indices, a group for each distinct trial, in the order of the file. `longest_run` is
    `(first, last)` of the longest row of equal trials that follow one another.

    >>> import numpy as np
    >>> found = DistinctTrials.of(np.array([[[1.0]], [[1.0]], [[0.5]], [[1.0]]]))
    >>> found.groups, found.longest_run, round(found.effective, 2)
    (((0, 1, 3), (2,)), (0, 1), 1.6)
    """

    groups: tuple[tuple[int, ...], ...]
    longest_run: tuple[int, int]

    @classmethod
    def of(cls, trial_scores: Floats) -> DistinctTrials:
        """The groups in `[T, L, N]`, which holds at least one trial."""
        keys = [(trial + 0.0).tobytes() for trial in trial_scores]  # -0.0 is 0.0
        groups: dict[bytes, list[int]] = {}
        for index, key in enumerate(keys):
            groups.setdefault(key, []).append(index)
        return cls(tuple(tuple(group) for group in groups.values()), _longest_run(keys))

    @property
    def number(self) -> int:
        """How many distinct trials there are."""
        return len(self.groups)

    @property
    def effective(self) -> float:
        """How many equally weighted trials the mean is worth: `T**2 / sum of squared group sizes` (Kish 1965)."""
        sizes = [len(group) for group in self.groups]
        return sum(sizes) ** 2 / sum(size**2 for size in sizes)


def _longest_run(keys: list[bytes]) -> tuple[int, int]:
    best, start = (0, 0), 0
    for index in range(1, len(keys)):
        if keys[index] != keys[start]:
            start = index
        if index - start > best[1] - best[0]:
            best = (start, index)
    return best


# The figures that describe a score file: what `headprobe scores show` tells.


@dataclass(frozen=True)
class TopHead:
    """A head with its mean score, its share of all (positive) scores, and the bootstrap interval of the mean."""

    layer: int
    head: int
    score: float
    share: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ScoreSummary:
    """`num_trials` counts all trials that the file states, `num_passed` those whose scores count; both, and
    `num_distinct_trials`, are None where the file has no trials. `zero_fraction` lies in [0, 1]. `half_mass_heads` is
    the smallest number of heads that account for half of the sum of the positive scores. `layer_means` is the mean over
    the heads of each layer."""

    num_trials: int | None
    num_passed: int | None
    num_distinct_trials: int | None
    sum_of_means: float
    max: float
    zero_fraction: float
    half_mass_heads: int
    layer_means: tuple[float, ...]
    top_heads: tuple[TopHead, ...]


def summarize(scores: AnyScores, top: int = 10, confidence: float = CONFIDENCE) -> ScoreSummary:
    """The figures of a file. Intervals come from the bootstrap of `headprobe.scores.uncertainty`: trials of one
    needle (in foreign files: those with equal scores) are drawn together.

    Raises `OptionError` for a negative `top`.
    """
    if top < 0:
        raise OptionError(f"top is {top}, need at least 0")
    trials, mean = scores.trial_scores, scores.mean
    passed = _num_passed(scores)
    return ScoreSummary(
        num_trials=scores.native.num_trials if scores.native is not None else passed,
        num_passed=passed,
        num_distinct_trials=None if trials is None else DistinctTrials.of(trials).number,
        sum_of_means=float(mean.sum()),
        max=float(mean.max()),
        zero_fraction=float((mean == 0.0).mean()),
        half_mass_heads=half_mass_heads(mean),
        layer_means=tuple(mean.mean(axis=1).tolist()),
        top_heads=_top_heads(scores, top, confidence),
    )


def half_mass_heads(mean: Floats) -> int:
    """The least number of heads that hold half of the sum of the positive scores; 0 where no score is positive.

    >>> half_mass_heads(np.array([[0.5, 0.25], [0.25, 0.0]])), half_mass_heads(np.zeros((1, 2)))
    (1, 0)
    """
    ordered = np.sort(np.maximum(mean, 0.0), axis=None)[::-1]
    if ordered[0] == 0.0:
        return 0
    sums = np.cumsum(ordered)
    return int(np.searchsorted(sums, sums[-1] / 2)) + 1


def _num_passed(scores: AnyScores) -> int | None:
    if scores.native is not None:
        return scores.native.num_passed
    return None if scores.trial_scores is None else len(scores.trial_scores)


def _top_heads(scores: AnyScores, top: int, confidence: float) -> tuple[TopHead, ...]:
    best = rank_heads(scores.mean)[:top]
    if scores.is_ranking:  # heads without points are not ranked at all
        best = [head for head in best if head[2] > 0.0]
    total = float(np.maximum(scores.mean, 0.0).sum())
    intervals = _intervals(scores, [(layer, head) for layer, head, _ in best], confidence)
    return tuple(
        TopHead(layer, head, score, max(score, 0.0) / total if total else 0.0, interval)
        for (layer, head, score), interval in zip(best, intervals, strict=True)
    )


def _intervals(scores: AnyScores, heads: list[tuple[int, int]], confidence: float) -> list[tuple[float, float] | None]:
    if scores.trial_scores is None or not heads:
        return [None] * len(heads)
    return list(ClusteredTrials.of_any(scores).intervals(heads, confidence))

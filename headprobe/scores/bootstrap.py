"""How sure a head's score is: percentile bootstrap over the passing trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.head_scores import Floats, Head, HeadScores


def bootstrap_interval(
    values: Floats, confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> tuple[Floats, Floats]:
    """The percentile bootstrap interval of the mean over the first axis.

    `num_resamples` times, as many trials as there are get drawn with replacement and averaged; the interval goes from
    the `(1 - confidence) / 2` to the `(1 + confidence) / 2` quantile of these means. All columns share the draws.
    `values` is `[trials, ...]`; low and high are `[...]`. One trial gives an interval of no width, which says
    nothing about certainty. Source: Efron (1979). Raises `OptionError` for no trial, a confidence outside (0, 1) or
    fewer than one resample.

    >>> low, high = bootstrap_interval(np.array([0.5, 0.5, 0.5]))
    >>> float(low), float(high)
    (0.5, 0.5)
    """
    _check(len(values), confidence, num_resamples)
    draws = np.random.default_rng(seed).integers(0, len(values), size=(num_resamples, len(values)))
    offsets = np.arange(num_resamples)[:, None] * len(values)
    counts = np.bincount((draws + offsets).ravel(), minlength=draws.size).reshape(draws.shape)
    center = values.mean(axis=0)
    spread = (values - center).reshape(len(values), -1)
    means = counts.astype(np.float64) @ spread / len(values)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return center + low.reshape(center.shape), center + high.reshape(center.shape)


def head_intervals(
    scores: HeadScores, heads: Sequence[Head], confidence: float = 0.95, num_resamples: int = 2000, seed: int = 0
) -> list[tuple[float, float]]:
    """The interval of each of the `heads` `(layer, head)`. Raises as `bootstrap_interval`, and as
    `HeadScores.passing_scores` where the trials' scores are not there."""
    if not heads:
        return []
    layers, columns = zip(*heads, strict=True)
    chosen = scores.passing_scores[:, list(layers), list(columns)]
    low, high = bootstrap_interval(chosen, confidence, num_resamples, seed)
    return list(zip(low.tolist(), high.tolist(), strict=True))


def _check(num_trials: int, confidence: float, num_resamples: int) -> None:
    if num_trials < 1:
        raise OptionError("an interval needs at least 1 trial, got 0")
    if not 0.0 < confidence < 1.0:
        raise OptionError(f"confidence is {confidence}, need a number between 0 and 1")
    if num_resamples < 1:
        raise OptionError(f"num_resamples is {num_resamples}, need at least 1")

"""How reliable a file is: one half of its trials against the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.head_scores import Floats
from headprobe.scores.ranks import spearman, top_k_overlap
from headprobe.scores.uncertainty import ClusteredTrials

NUM_SPLITS = 200


@dataclass(frozen=True)
class SplitHalf:
    """Spearman between random halves of the clusters: mean, and the range that holds 95 % of the splits.

    `whole` is Spearman and Brown's forecast for the whole file, `2 r / (1 + r)` of the mean: how it would agree with
    another file of as many trials. `top`: for how many heads `shared`, the mean number that the tops of both halves
    share, was counted. NaN where the halves have no ranks (all heads equal).
    """

    spearman: float
    low: float
    high: float
    whole: float
    top: int
    shared: float


def split_half(trials: ClusteredTrials, top: int = 20, num_splits: int = NUM_SPLITS, seed: int = 0) -> SplitHalf:
    """Split the clusters `num_splits` times at random and compare the means of the halves.

    Source: Spearman (1910), Brown (1910). Raises `OptionError` for fewer than two clusters, a `top` outside 1..heads
    or no split.

    >>> twice = ClusteredTrials.of_rows(np.array([[[0.3, 0.2, 0.1]], [[0.6, 0.5, 0.4]]]))
    >>> split_half(twice, top=1)
    SplitHalf(spearman=1.0, low=1.0, high=1.0, whole=1.0, top=1, shared=1.0)
    """
    if trials.num_clusters < 2:
        raise OptionError(f"halves need at least 2 independent trials, got {trials.num_clusters}")
    if num_splits < 1:
        raise OptionError(f"num_splits is {num_splits}, need at least 1")
    splits = [(spearman(a, b), top_k_overlap(a, b, top)) for a, b in _halves(trials, num_splits, seed)]
    found, shared = np.array(splits)[:, 0], np.mean([overlap for _, overlap in splits])
    if not np.isfinite(found).any():
        return SplitHalf(nan, nan, nan, nan, top, float(shared))
    mean = float(np.nanmean(found))
    low, high = np.nanquantile(found, [0.025, 0.975])
    return SplitHalf(mean, float(low), float(high), forecast(mean), top, float(shared))


def forecast(half: float) -> float:
    """Spearman and Brown's `2 r / (1 + r)`; at or below 0 stays at 0.

    >>> forecast(0.5), forecast(-0.2)
    (0.6666666666666666, 0.0)
    """
    return 2 * half / (1 + half) if half > 0 else 0.0


def _halves(trials: ClusteredTrials, num_splits: int, seed: int) -> Iterator[tuple[Floats, Floats]]:
    """The means `[L * N]` of both halves, split by split."""
    rng, clusters = np.random.default_rng(seed), trials.num_clusters
    for _ in range(num_splits):
        inside = np.zeros(clusters)
        inside[rng.permutation(clusters)[: clusters // 2]] = 1.0
        first, second = (side @ trials.sums / (side @ trials.sizes) for side in (inside, 1.0 - inside))
        yield first, second

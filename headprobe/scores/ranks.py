"""Ranks of heads, how far two rankings agree, and how far one half of a file's trials agrees with the other."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import nan

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.head_scores import Floats
from headprobe.scores.uncertainty import CONFIDENCE, NUM_RESAMPLES, SEED, ClusteredTrials, draws

# Ranks of heads, and how far two rankings agree.


def midranks(values: Floats) -> Floats:
    """Ranks along the last axis, 1 for the largest; equal values share the mean of their ranks.

    >>> midranks(np.array([0.5, 0.9, 0.0, 0.5])).tolist()
    [2.5, 1.0, 4.0, 2.5]
    """
    order = np.argsort(-values, axis=-1, kind="stable")
    ordered = np.take_along_axis(values, order, axis=-1)
    places = np.broadcast_to(np.arange(values.shape[-1]), values.shape)
    begins = np.ones(values.shape, dtype=bool)
    begins[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = np.roll(begins, -1, axis=-1)
    first = np.maximum.accumulate(np.where(begins, places, 0), axis=-1)
    last = np.where(ends, places, values.shape[-1])[..., ::-1]
    last = np.minimum.accumulate(last, axis=-1)[..., ::-1]
    ranks = np.empty(values.shape, dtype=np.float64)
    np.put_along_axis(ranks, order, (first + last) / 2 + 1, axis=-1)
    return ranks


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's correlation over all heads: Pearson's of the midranks, in [-1, 1]; NaN where all of one side are
    equal. `a` and `b` have one shape. Source: Spearman (1904). Raises `OptionError` for two shapes.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0]))
    -1.0
    """
    _check_shapes(a, b)
    return float(pearson(midranks(a.ravel()), midranks(b.ravel())))


def spearman_interval(
    a: Floats, b: Floats, confidence: float = CONFIDENCE, num_resamples: int = NUM_RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """The percentile bootstrap interval of `spearman` over heads: pairs of scores are drawn with replacement.

    It says how far the number rests on single heads, not how it would change with other trials. NaN where `spearman`
    is. Raises `OptionError` as `spearman`.
    """
    _check_shapes(a, b)
    groups = [np.unique(-side.ravel(), return_inverse=True)[1].ravel() for side in (a, b)]
    found = np.concatenate(
        [
            pearson(_weighted_midranks(groups[0], weights), _weighted_midranks(groups[1], weights), weights)
            for weights in draws(a.size, num_resamples, seed)
        ]
    )
    if not np.isfinite(found).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def pearson(a: Floats, b: Floats, weights: Floats | None = None) -> Floats:
    """Pearson's correlation along the last axis, each pair counted `weights` times; NaN where one side is constant.

    >>> pearson(np.array([[1.0, 2.0, 4.0]]), np.array([[2.0, 4.0, 8.0]])).tolist()
    [1.0]
    """
    times = np.ones(a.shape) if weights is None else weights
    total = times.sum(axis=-1, keepdims=True)
    a = a - (a * times).sum(axis=-1, keepdims=True) / total
    b = b - (b * times).sum(axis=-1, keepdims=True) / total
    spread = np.sqrt((times * a * a).sum(axis=-1) * (times * b * b).sum(axis=-1))
    together = (times * a * b).sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip(np.where(spread > 0, together / spread, np.nan), -1.0, 1.0))


def top_k_weights(values: Floats, k: int) -> Floats:
    """For each head its share in the top `k`: 1 inside, 0 outside; heads tied at the border share the last places.

    >>> top_k_weights(np.array([0.9, 0.2, 0.2, 0.1]), 2).tolist()
    [1.0, 0.5, 0.5, 0.0]
    """
    if not 1 <= k <= values.size:
        raise OptionError(f"cannot take the top {k} of {values.size} heads")
    border = np.partition(values.ravel(), values.size - k)[values.size - k]
    above, tied = values > border, values == border
    weights = above.astype(np.float64)
    weights[tied] = (k - above.sum()) / tied.sum()
    return weights


def top_k_overlap(a: Floats, b: Floats, k: int) -> float:
    """How many heads the top `k` of `a` and of `b` share, 0 to k; where heads are tied at a border, the number to
    expect if lots were drawn. By chance alone it would be `k * k / heads`. Raises `OptionError` for two shapes, or a
    `k` outside 1..heads.

    >>> top_k_overlap(np.array([3.0, 2.0, 1.0, 0.0]), np.array([3.0, 0.0, 2.0, 1.0]), 2)
    1.0
    """
    _check_shapes(a, b)
    return float((top_k_weights(a, k) * top_k_weights(b, k)).sum())


def ranked_heads(values: Floats) -> int:
    """How many heads score above 0: those that a ranking can distinguish from the rest."""
    return int((values > 0).sum())


def _weighted_midranks(group: np.ndarray, weights: Floats) -> Floats:
    """Midranks `[R, N]` when head i comes `weights[:, i]` times; `group[i]` numbers its value, the largest 0."""
    sizes = np.zeros((len(weights), int(group.max()) + 1))
    np.add.at(sizes.T, group, weights.T)
    ranks = sizes.cumsum(axis=1) - (sizes - 1) / 2
    return np.asarray(ranks[:, group], dtype=np.float64)


def _check_shapes(a: Floats, b: Floats) -> None:
    if a.shape != b.shape:
        raise OptionError(f"scores of shape {a.shape} and {b.shape} cannot be compared head by head")


# How reliable a file is: one half of its trials against the other.

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

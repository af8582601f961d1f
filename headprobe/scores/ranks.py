"""Ranks of heads, and how far two rankings agree."""

from __future__ import annotations

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.head_scores import Floats
from headprobe.scores.uncertainty import CONFIDENCE, NUM_RESAMPLES, SEED, draws


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
    """How many heads score above 0: those that a ranking can tell apart from the rest."""
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

"""A mean over trials with its bootstrap interval, and the mean difference of paired trials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from headprobe.scores.uncertainty import SEED, mean_intervals, numbered


@dataclass(frozen=True)
class Estimate:
    """The mean of `num` trials and its 95 % interval; all None where there is none.

    `low` and `high` are None where the trials are all of one cluster: nothing can be said then.
    """

    mean: float | None = None
    low: float | None = None
    high: float | None = None
    num: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return dict(vars(self))


def estimate(values: Sequence[float], clusters: Sequence[str], seed: int = SEED) -> Estimate:
    """The mean of `values` with its interval (`headprobe.scores.uncertainty`); whole `clusters` are drawn.

    Trials of one cluster (one needle in several places) are not independent, so they are drawn together. Where all
    values agree the interval has no width, which is a limit of the bootstrap and no certainty.

    >>> estimate([1.0, 1.0, 0.0], ["a", "b", "b"]).num
    3
    """
    if not values:
        return Estimate()
    given = np.asarray(values, dtype=np.float64)
    mean = float(given.mean())
    groups = numbered(clusters)
    if not groups.any():
        return Estimate(mean, None, None, len(given))
    ((low, high),) = mean_intervals([given], groups, seed=seed)
    return Estimate(mean, low, high, len(given))


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], clusters: Mapping[str, str], seed: int = SEED
) -> Estimate:
    """The mean of `first - second` over the prompts that both have, with its interval.

    The three map a prompt to a value, a value, and the prompt's cluster. Pairing takes out what makes a prompt easy or
    hard for both.

    >>> paired_difference({"p": 1.0, "q": 0.0}, {"p": 0.5, "r": 9.0}, {"p": "n"}).mean
    0.5
    """
    shared = [prompt for prompt in first if prompt in second]
    return estimate([first[p] - second[p] for p in shared], [clusters[p] for p in shared], seed)

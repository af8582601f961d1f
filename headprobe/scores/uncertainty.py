"""How sure a mean over trials is: the one bootstrap behind every interval that headprobe prints."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headprobe.errors import NoPassingTrialError, OptionError
from headprobe.scores.any_scores import AnyScores, reduce_to_kv
from headprobe.scores.head_scores import Floats, Head, HeadScores

# How sure a mean over trials is: the one bootstrap behind every interval that headprobe prints.
#
# Trials that share a needle share facts, question and answer, so that they say less than as many others. Whole
# clusters of them are drawn with replacement, as many as there are, and the mean is taken over all trials in them;
# the interval runs between the quantiles of such means (percentile bootstrap, Efron 1979). The same trials, seed and
# number of resamples give the same interval to the last bit, whatever else is computed with them.

CLUSTERINGS = ("needle-length", "needle", "trial")
CLUSTERING = "needle"  # what every interval rests on that does not say otherwise
CONFIDENCE, NUM_RESAMPLES, SEED = 0.95, 2000, 0
CHUNK_ELEMENTS = 1 << 20  # numbers in a block of draws or resampled means
_COLUMNS = 4096  # whose resampled means are held at a time
_KEPT_ELEMENTS = 1 << 18  # draws up to this size are kept for the next interval

Clusters = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ClusteredTrials:
    """Passing trials `[T, L, N]` and for each the number of its cluster, 0 to C - 1. `kind` names what makes one."""

    scores: Floats
    cluster: Clusters
    kind: str

    def __post_init__(self) -> None:
        if not len(self.scores):
            raise NoPassingTrialError("none of 0 trials passed: there is no score to report")

    @classmethod
    def of(cls, scores: HeadScores, kind: str = CLUSTERING) -> ClusteredTrials:
        """The passing trials of a native file. `needle`: all trials of one needle are one cluster; `needle-length`: one
        needle in one length, at whatever depth; `trial`: each for itself.

        Raises `OptionError` for another kind, and as `HeadScores.passing_scores`.
        """
        if kind not in CLUSTERINGS:
            raise OptionError(f"trials are clustered by {', '.join(CLUSTERINGS)}, not {kind!r}")
        passing = [trial for trial in scores.trials if trial.passed]
        keys: dict[str, list[Any]] = {
            "needle": [t.needle for t in passing],
            "needle-length": [(t.needle, t.length) for t in passing],
            "trial": [t.id for t in passing],
        }
        return cls(scores.passing_scores, numbered(keys[kind]), kind)

    @classmethod
    def of_rows(cls, scores: Floats) -> ClusteredTrials:
        """Trials `[T, L, N]` of which nothing else is known: those with equal scores are one trial, stored twice."""
        return cls(scores, numbered([(row + 0.0).tobytes() for row in scores]), "distinct scores")

    @classmethod
    def of_any(cls, scores: AnyScores, kind: str = CLUSTERING) -> ClusteredTrials:
        """The trials of a native file as `of` gives them, those of another as `of_rows` does.

        Raises `OptionError` where the file holds no trial scores.
        """
        if scores.native is not None and scores.native.has_trial_scores:
            return cls.of(scores.native, kind)
        if scores.trial_scores is None:
            raise OptionError(f"{scores.path} holds no trial scores: the certainty of its ranks is unknown")
        return cls.of_rows(scores.trial_scores)

    def grouped(self, num_kv_heads: int) -> ClusteredTrials:
        """The same trials over KV heads `[T, L, G]`, each the mean of the query heads that share it."""
        trials, layers, heads = self.scores.shape
        reduced = reduce_to_kv(self.scores.reshape(-1, heads), num_kv_heads)
        return ClusteredTrials(reduced.reshape(trials, layers, num_kv_heads), self.cluster, self.kind)

    @property
    def num_trials(self) -> int:
        """T."""
        return len(self.scores)

    @property
    def num_clusters(self) -> int:
        """C: how many draws a resample takes."""
        return int(self.cluster.max()) + 1

    @cached_property
    def flat(self) -> Floats:
        """The scores as `[T, L * N]`."""
        return self.scores.reshape(len(self.scores), -1)

    @cached_property
    def sizes(self) -> Floats:
        """Trials in each cluster, `[C]`."""
        return np.bincount(self.cluster).astype(np.float64)

    @cached_property
    def sums(self) -> Floats:
        """Summed scores of each cluster, `[C, L * N]`."""
        made = np.zeros((self.num_clusters, self.flat.shape[1]))
        np.add.at(made, self.cluster, self.flat)
        return made

    def means(self, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> Iterator[Floats]:
        """Means over resampled clusters, in blocks `[r, L * N]` of `num_resamples` rows altogether."""
        for times in draws(self.num_clusters, num_resamples, seed, self.flat.shape[1]):
            yield (times @ self.sums) / (times @ self.sizes)[:, None]

    def intervals(
        self,
        heads: Sequence[Head],
        confidence: float = CONFIDENCE,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = SEED,
    ) -> list[tuple[float, float]]:
        """The interval of the mean of each of the `heads` `(layer, head)`. One cluster gives intervals of no width,
        which say nothing about certainty. Raises as `mean_intervals`."""
        columns = [self.scores[:, layer, head] for layer, head in heads]
        return mean_intervals(columns, self.cluster, confidence, num_resamples, seed)


def head_intervals(
    scores: HeadScores,
    heads: Sequence[Head],
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> list[tuple[float, float]]:
    """The interval of each of the `heads` `(layer, head)` of a native file, whose needles are drawn.

    Raises `OptionError` for a confidence outside (0, 1) or fewer than one resample, and as
    `HeadScores.passing_scores` where the trials' scores are not there.
    """
    return ClusteredTrials.of(scores).intervals(heads, confidence, num_resamples, seed) if heads else []


def mean_intervals(
    columns: Sequence[Floats],
    cluster: Clusters,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> list[tuple[float, float]]:
    """For each column `[T]` of trials the interval of its mean; `cluster` `[T]` numbers what is drawn together.

    Each column is computed by itself, so that its interval does not depend on the others. Equal trials give no width.
    Raises `OptionError` for no trial, a confidence outside (0, 1) or fewer than one resample.

    >>> mean_intervals([np.array([0.5, 0.5, 0.5]), np.array([0.0, 0.0, 1.0])], np.array([0, 0, 1]))
    [(0.5, 0.5), (0.0, 1.0)]
    """
    _check(len(cluster), confidence, num_resamples)
    if len(columns) > _COLUMNS:
        parts = [columns[start : start + _COLUMNS] for start in range(0, len(columns), _COLUMNS)]
        return [ends for part in parts for ends in mean_intervals(part, cluster, confidence, num_resamples, seed)]
    sizes = np.bincount(cluster).astype(np.float64)
    values = [np.ascontiguousarray(column, dtype=np.float64) for column in columns]
    centers = [float(column.mean()) for column in values]
    off = [np.bincount(cluster, column - center) for column, center in zip(values, centers, strict=True)]
    found, row = np.empty((len(columns), num_resamples)), 0
    for times in draws(len(sizes), num_resamples, seed):
        totals, last = times @ sizes, row + len(times)
        for index, sums in enumerate(off):
            found[index, row:last] = times @ sums / totals
        row = last
    ends = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2], axis=1).T.tolist()
    return [(center + low, center + high) for center, (low, high) in zip(centers, ends, strict=True)]


def draws(
    count: int, num_resamples: int = NUM_RESAMPLES, seed: int = SEED, width: int = 1
) -> Iterator[NDArray[np.float64]]:
    """How often each of `count` clusters is drawn, in blocks `[r, count]` of `num_resamples` rows altogether.

    The blocks are small enough for as many rows of `width` numbers; their size does not change what is drawn.
    """
    block = max(1, CHUNK_ELEMENTS // max(count, width))
    if count * num_resamples <= min(_KEPT_ELEMENTS, block * count):
        yield _kept_draws(count, num_resamples, seed)
        return
    rng = np.random.default_rng(seed)
    for start in range(0, num_resamples, block):
        rows = min(block, num_resamples - start)
        yield rng.multinomial(count, np.full(count, 1 / count), size=rows).astype(np.float64)


@lru_cache(maxsize=32)
def _kept_draws(count: int, num_resamples: int, seed: int) -> NDArray[np.float64]:
    times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=num_resamples)
    made = times.astype(np.float64)
    made.setflags(write=False)
    return made


def numbered(keys: Sequence[object]) -> Clusters:
    """For each key the number of its group, in the order in which groups come up.

    >>> numbered(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    groups: dict[object, int] = {}
    return np.array([groups.setdefault(key, len(groups)) for key in keys], dtype=np.int64)


def _check(num_trials: int, confidence: float, num_resamples: int) -> None:
    if num_trials < 1:
        raise OptionError("an interval needs at least 1 trial, got 0")
    if not 0.0 < confidence < 1.0:
        raise OptionError(f"confidence is {confidence}, need a number between 0 and 1")
    if num_resamples < 1:
        raise OptionError(f"num_resamples is {num_resamples}, need at least 1")


# A mean over trials with its bootstrap interval, and the mean difference of paired trials.


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

"""Trials that belong together, drawn together: the clustered bootstrap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headprobe.errors import NoPassingTrialError, OptionError
from headprobe.scores.any_scores import AnyScores, reduce_to_kv
from headprobe.scores.head_scores import Floats, HeadScores

CLUSTERINGS = ("needle-length", "needle", "trial")
CHUNK_ELEMENTS = 1 << 20  # numbers in a block of resampled means


@dataclass(frozen=True, eq=False)
class ClusteredTrials:
    """Passing trials `[T, L, N]` and for each the number of its cluster, 0 to C - 1.

    Trials of one cluster share their text (or are the same trial twice), so that they tell less than as many others;
    resampling draws whole clusters. `kind` names what makes a cluster.
    """

    scores: Floats
    cluster: NDArray[np.int64]
    kind: str

    def __post_init__(self) -> None:
        if not len(self.scores):
            raise NoPassingTrialError("none of 0 trials passed: there is no score to tell")

    @classmethod
    def of(cls, scores: HeadScores, kind: str = CLUSTERINGS[0]) -> ClusteredTrials:
        """The passing trials of a native file. `needle-length`: one needle in one length, at whatever depth, is one
        cluster; `needle`: one needle in all lengths; `trial`: each for itself.

        Raises `OptionError` for another kind, and as `HeadScores.passing_scores`.
        """
        if kind not in CLUSTERINGS:
            raise OptionError(f"trials are clustered by {', '.join(CLUSTERINGS)}, not {kind!r}")
        passing = [trial for trial in scores.trials if trial.passed]
        keys: dict[str, list[Any]] = {
            "needle-length": [(t.needle, t.length) for t in passing],
            "needle": [t.needle for t in passing],
            "trial": [t.id for t in passing],
        }
        return cls(scores.passing_scores, numbered(keys[kind]), kind)

    @classmethod
    def of_rows(cls, scores: Floats) -> ClusteredTrials:
        """Trials `[T, L, N]` of which nothing else is known: those with equal scores are one trial told twice."""
        return cls(scores, numbered([(row + 0.0).tobytes() for row in scores]), "distinct scores")

    @classmethod
    def of_any(cls, scores: AnyScores, kind: str = CLUSTERINGS[0]) -> ClusteredTrials:
        """The trials of a native file as `of` gives them, those of another as `of_rows` does.

        Raises `OptionError` where the file holds no trial scores.
        """
        if scores.native is not None and scores.native.has_trial_scores:
            return cls.of(scores.native, kind)
        if scores.trial_scores is None:
            raise OptionError(f"{scores.path} holds no trial scores: how sure its ranks are cannot be told")
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

    def means(self, num_resamples: int, seed: int) -> Iterator[Floats]:
        """Means over resampled clusters, in blocks `[r, L * N]` of `num_resamples` rows altogether.

        Each resample draws C clusters with replacement and takes the mean over all their trials.
        """
        clusters = self.num_clusters
        rng = np.random.default_rng(seed)
        block = max(1, CHUNK_ELEMENTS // max(self.flat.shape[1], clusters))
        for start in range(0, num_resamples, block):
            rows = min(block, num_resamples - start)
            times = rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=rows)
            yield (times @ self.sums) / (times @ self.sizes)[:, None]


def numbered(keys: Sequence[object]) -> NDArray[np.int64]:
    """For each key the number of its group, in the order in which groups come up.

    >>> numbered(["b", "a", "b"]).tolist()
    [0, 1, 0]
    """
    groups: dict[object, int] = {}
    return np.array([groups.setdefault(key, len(groups)) for key in keys], dtype=np.int64)

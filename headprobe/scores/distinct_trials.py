"""Which trials of a file are one and the same measurement."""

from __future__ import annotations

from dataclasses import dataclass

from headprobe.scores.head_scores import Floats


@dataclass(frozen=True)
class DistinctTrials:
    """Trials whose scores agree in every head count as one, whatever they are called.

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

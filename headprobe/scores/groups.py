"""Whether some lengths, depths or needles rank the heads in another way than the rest."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import atanh, isfinite

import numpy as np

from headprobe.scores.head_scores import Floats, HeadScores, Trial
from headprobe.scores.ranks import spearman

NUM_DRAWS = 100
UNLIKE = -3.0  # standard deviations below what as many random trials would give
KINDS: dict[str, Callable[[Trial], Hashable]] = {
    "length": lambda trial: trial.length,
    "depth": lambda trial: trial.depth,
    "needle": lambda trial: trial.needle,
}


@dataclass(frozen=True)
class TrialGroup:
    """Trials that have length, depth or needle in common, against all the others.

    `spearman` is that of the group's mean with the mean of the rest, `expected` what as many trials drawn at random
    have with their rest; `deviation` is the distance between the two in standard deviations (of Fisher's z) of such
    draws. None where there is nothing to compare: no passing trial in the group or outside of it, or all heads equal.
    """

    kind: str
    name: str
    num_trials: int
    num_passed: int
    spearman: float | None = None
    expected: float | None = None
    deviation: float | None = None

    @property
    def is_unlike(self) -> bool:
        """Whether the group ranks heads in another way than so few trials would by chance."""
        return self.deviation is not None and self.deviation < UNLIKE


def trial_groups(scores: HeadScores, kind: str, seed: int = 0) -> tuple[TrialGroup, ...]:
    """The groups of one `kind` (`length`, `depth`, `needle`), in the order of lengths, depths or names.

    Raises as `HeadScores.passing_scores`.
    """
    key = KINDS[kind]
    flat = scores.passing_scores.reshape(scores.num_passed, -1)
    passing = np.array([key(trial) for trial in scores.trials if trial.passed])
    yardstick = _Yardstick(flat, seed)
    groups = []
    for value in sorted({key(trial) for trial in scores.trials}):  # type: ignore[type-var]
        members = passing == value
        total = sum(key(trial) == value for trial in scores.trials)
        name = f"{value:g}" if isinstance(value, float) else str(value)
        groups.append(TrialGroup(kind, name, total, int(members.sum()), *yardstick.measure(members)))
    return tuple(groups)


class _Yardstick:
    """Spearman between some trials and the rest, beside what random trials of the same number give."""

    def __init__(self, flat: Floats, seed: int) -> None:
        self._flat = flat
        self._sum = flat.sum(axis=0)
        self._seed = seed
        self._known: dict[int, Floats] = {}

    def measure(self, members: np.ndarray) -> tuple[float | None, float | None, float | None]:
        size = int(members.sum())
        if not 0 < size < len(self._flat):
            return None, None, None
        found = float(self._with_rest(members[None])[0])
        random = self._random(size)
        if not isfinite(found) or not len(random):
            return None, None, None
        z = np.arctanh(np.clip(random, -0.999999, 0.999999))
        own = atanh(min(max(found, -0.999999), 0.999999))
        spread = float(z.std())
        return found, float(random.mean()), (own - float(z.mean())) / spread if spread > 1e-9 else None

    def _random(self, size: int) -> Floats:
        if size not in self._known:
            rng = np.random.default_rng([self._seed, size])
            chosen = np.zeros((NUM_DRAWS, len(self._flat)), dtype=bool)
            chosen[:, :size] = True
            found = self._with_rest(rng.permuted(chosen, axis=1))
            self._known[size] = found[np.isfinite(found)]
        return self._known[size]

    def _with_rest(self, chosen: np.ndarray) -> Floats:
        """Spearman between the trials that each row `[T]` of `chosen` marks and all others."""
        return np.array([self._one_with_rest(row) for row in chosen])

    def _one_with_rest(self, inside: np.ndarray) -> float:
        mine = inside.astype(np.float64) @ self._flat
        return spearman(mine / inside.sum(), (self._sum - mine) / (~inside).sum())

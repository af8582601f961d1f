"""Are there enough trials: which ranks would be reproduced, and whether some trials rank heads differently."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from math import atanh, ceil, floor, isfinite, log10

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.head_scores import Floats, HeadScores, Trial
from headprobe.scores.ranks import midranks, ranked_heads, spearman
from headprobe.scores.uncertainty import CONFIDENCE, NUM_RESAMPLES, SEED, ClusteredTrials

# Whether some lengths, depths or needles rank the heads in another way than the rest.

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


# Are there enough trials: which ranks of heads would be reproduced.

AGREEMENT = 0.95
MIN_CLUSTERS = 10
MOST_GROWTH = 16.0


@dataclass(frozen=True)
class HeadRank:
    """A head's mean score and rank, each with its interval; ranks count from 1, tied heads share the mean rank."""

    layer: int
    head: int
    score: float
    score_low: float
    score_high: float
    rank: int
    rank_low: float
    rank_high: float


@dataclass(frozen=True)
class Stability:
    """How sure a ranking is.

    `overlap[k - 1]`: the share of the top k that would be reproduced, the mean over resamples; `asked`: the requested
    top; `top`: the same, or the number of heads above 0 where there are fewer; `stable_top`: the largest k up
    to `top` whose share reaches `agreement` (0: none); `more_trials`: about how many more passing trials would bring
    the share of the top `top` there (0: none; None: more than 15 times those there are, or unknown), and
    `more_clusters`: of how many clusters beyond those that are there these have to be.
    """

    num_trials: int
    num_clusters: int
    asked: int
    top: int
    agreement: float
    overlap: tuple[float, ...]
    stable_top: int
    more_trials: int | None
    more_clusters: int | None

    @property
    def is_stable(self) -> bool:
        """Whether all of the top that was looked at is stable, on clusters enough to say so."""
        return 0 < self.top == self.stable_top and self.num_clusters >= MIN_CLUSTERS

    @property
    def verdict(self) -> str:
        """The finding in a sentence or two."""
        if not self.top:
            return "no head scores above 0: there is no ranking"
        limited = "" if self.top == self.asked else f"only {_heads(self.top)} above 0; "
        if self.num_clusters < MIN_CLUSTERS:
            few = f"{self.num_clusters} independent trial{'s are' if self.num_clusters > 1 else ' is'}"
            return f"{limited}{few} too few to tell what is stable: need at least {MIN_CLUSTERS}"
        again = f"about {self.overlap[self.top - 1] * self.top:.1f} of the top {self.top} would be reproduced"
        told = [self._stable(), again] if self.is_stable else [self._stable(), again, self._missing()]
        return limited + "; ".join(told)

    def _stable(self) -> str:
        if not self.stable_top:
            return f"no top of up to {self.top} heads is stable"
        if self.stable_top == self.top:
            return f"the top {self.top} are stable"
        last = self.stable_top + 1
        ranks = f"rank {last} is" if last == self.top else f"ranks {last} to {self.top} are"
        return f"the top {self.stable_top} are stable, {ranks} not"

    def _missing(self) -> str:
        if self.more_trials is None:
            return f"{MOST_GROWTH:g} times the trials would not settle them"
        independent = "" if self.num_clusters == self.num_trials else f", {self.more_clusters} of them independent,"
        return f"about {self.more_trials} more passing trials{independent} would settle them"


def stability(
    trials: ClusteredTrials,
    top: int = 20,
    agreement: float = AGREEMENT,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> Stability:
    """Resample whole clusters of trials and count how much of each top k is reproduced.

    For every k, `overlap = mean over resamples of |top k of the resample and top k of all trials| / k`; it estimates
    how much of the measured top k belongs there. Raises `OptionError` for a `top` outside 1..heads - 1 or an
    `agreement` outside (0, 1).
    """
    num_heads = trials.flat.shape[1]
    _check(top, num_heads, agreement, num_resamples)
    mean = trials.flat.mean(axis=0)
    looked_at = min(top, ranked_heads(mean), num_heads - 1)
    shown = min(max(looked_at, 1), num_heads)
    overlap = top_overlaps(trials, mean, shown, num_resamples, seed)
    reached = [k for k in range(1, looked_at + 1) if overlap[k - 1] >= agreement]
    more: tuple[int | None, int | None] = (0, 0)
    if not looked_at or trials.num_clusters < MIN_CLUSTERS:
        more = (None, None)
    elif looked_at not in reached:
        share = float(overlap[looked_at - 1])
        more = (more_trials(trials.num_trials, share, agreement), more_trials(trials.num_clusters, share, agreement))
    found = tuple(overlap.tolist()) if looked_at else ()
    return Stability(
        trials.num_trials, trials.num_clusters, top, looked_at, agreement, found, max(reached, default=0), *more
    )


def rank_intervals(
    trials: ClusteredTrials,
    top: int = 20,
    confidence: float = CONFIDENCE,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = SEED,
) -> tuple[HeadRank, ...]:
    """The `top` heads, best first (equal scores by layer, head), with percentile bootstrap intervals of score and rank
    from resampled clusters. One cluster gives intervals of no width, which say nothing.

    Raises `OptionError` for a `top` below 0, a `confidence` outside (0, 1) or no resample.
    """
    if top < 0 or not 0.0 < confidence < 1.0 or num_resamples < 1:
        raise OptionError(f"top is {top}, confidence {confidence}, num_resamples {num_resamples}: need 0, (0, 1) and 1")
    mean, width = trials.flat.mean(axis=0), trials.scores.shape[2]
    best = np.argsort(-mean, kind="stable")[:top]
    heads = [(int(head) // width, int(head) % width) for head in best]
    scores = trials.intervals(heads, confidence, num_resamples, seed)
    ranks = [midranks(block)[:, best].astype(np.float32) for block in trials.means(num_resamples, seed)]
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    rank_low, rank_high = np.quantile(np.concatenate(ranks).astype(np.float64), ends, axis=0)
    return tuple(
        HeadRank(*heads[i], float(mean[head]), *scores[i], i + 1, float(rank_low[i]), float(rank_high[i]))
        for i, head in enumerate(best)
    )


def top_overlaps(trials: ClusteredTrials, reference: Floats, most: int, num_resamples: int, seed: int) -> Floats:
    """For k = 1 to `most` the mean share of the top k of `reference` `[L * N]` that resamples have in their top k.

    A head that is tied in a resample counts as inside where the mean of the tied ranks is.
    """
    best = np.argsort(-reference, kind="stable")[:most]
    places = np.arange(1, most + 1)
    met = np.zeros(most)
    for block in trials.means(num_resamples, seed):
        needed = np.ceil(np.maximum(midranks(block)[:, best], places)).astype(np.int64)
        met += np.bincount(needed[needed <= most] - 1, minlength=most)
    return np.asarray(met.cumsum() / (num_resamples * places), dtype=np.float64)


def more_trials(num_trials: int, share: float, agreement: float) -> int | None:
    """About how many trials beyond `num_trials` bring `share` up to `agreement`; None for more than 15 times as many.

    Of heads that lie evenly around the border, as many change sides as the noise is wide, and that falls with the root
    of the number of trials: `1 - share` is proportional to `num_trials ** -0.5`. Where the border falls into a gap,
    fewer are needed. The same for clusters: the noise falls with their number, at as many trials in each.

    >>> more_trials(100, 0.9, 0.95), more_trials(100, 0.5, 0.95), more_trials(100, 0.96, 0.95)
    (300, None, 0)
    """
    if share >= agreement:
        return 0
    growth = ((1 - share) / (1 - agreement)) ** 2
    return round_up(num_trials * (growth - 1) - 1e-9) if growth <= MOST_GROWTH else None


def round_up(number: float) -> int:
    """Up to two digits that count, at least 1.

    >>> round_up(0.2), round_up(37.2), round_up(1234)
    (1, 38, 1300)
    """
    step = 10 ** max(0, floor(log10(max(number, 1.0))) - 1)
    return max(1, ceil(number / step) * step)


def _heads(count: int) -> str:
    return "1 head scores" if count == 1 else f"{count} heads score"


def _check(top: int, num_heads: int, agreement: float, num_resamples: int) -> None:
    if not 1 <= top < num_heads:
        raise OptionError(f"the top is {top}, need 1 to {num_heads - 1} of {num_heads} heads")
    if not 0.0 < agreement < 1.0:
        raise OptionError(f"agreement is {agreement}, need a number between 0 and 1")
    if num_resamples < 1:
        raise OptionError(f"num_resamples is {num_resamples}, need at least 1")

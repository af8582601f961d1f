"""Two score files of one geometry side by side: how far their rankings agree, and which heads moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores, check_how, reduce_to_kv
from headprobe.scores.head_scores import Floats
from headprobe.scores.ranks import midranks, ranked_heads, spearman, spearman_interval, split_half, top_k_overlap
from headprobe.scores.uncertainty import ClusteredTrials

# Two score files brought onto the same heads.

_WORDS = {"query": "query heads", "kv": "KV heads"}
_JOINED = {"mean": "the mean of its query heads", "max": "its best query head"}


@dataclass(frozen=True, eq=False)
class Side:
    """One of two files over the heads `[L, N]` that both are compared on; `joined` says how its query heads became
    KV heads, None where they did not."""

    scores: AnyScores
    table: Floats
    joined: str | None

    @property
    def note(self) -> str | None:
        """How the table came about, where it is not the file's own."""
        if self.joined is None:
            return None
        heads, groups = self.scores.mean.shape[1], self.table.shape[1]
        return f"{self.scores.path.name}: {heads} query heads as {groups} KV heads, each {_JOINED[self.joined]}"

    @property
    def trials(self) -> ClusteredTrials | None:
        """The file's trials over the same heads; None where it has none, or the best query head was taken (the mean
        of the best is not the best mean)."""
        if self.scores.trial_scores is None or self.joined == "max":
            return None
        trials = ClusteredTrials.of_any(self.scores)
        return trials if self.joined is None else trials.grouped(self.table.shape[1])


def aligned(first: AnyScores, second: AnyScores, how: str = "mean") -> tuple[Side, Side]:
    """Both files over the same heads: a file over query heads meets one over KV heads through the groups of query heads
    that share a KV head, joined by `how`, `mean` or `max`.

    A ranking, which has no scores and no stated shape, is widened to the other file's; its KV heads take their best
    query head. Raises `OptionError` for another geometry, or a `how` that is neither.
    """
    check_how(how)
    first, second = _widened(first, second), _widened(second, first)
    groups = _common_heads(first, second)
    return _side(first, groups, how), _side(second, groups, how)


def _side(scores: AnyScores, groups: int, how: str) -> Side:
    if scores.mean.shape[1] == groups:
        return Side(scores, scores.mean, None)
    joined = "max" if scores.is_ranking else how
    return Side(scores, reduce_to_kv(scores.mean, groups, joined), joined)


def _common_heads(first: AnyScores, second: AnyScores) -> int:
    """How many heads of a layer both can be compared on."""
    layers, heads = zip(first.mean.shape, second.mean.shape, strict=True)
    few, many = min(heads), max(heads)
    known = {_kv_heads(side) for side in (first, second)} - {None}
    if first.heads == second.heads:
        fits = few == many
    else:
        fits = many % few == 0 and next(s for s in (first, second) if s.heads == "kv").mean.shape[1] == few
    if layers[0] != layers[1] or not fits or len(known) > 1:
        raise OptionError(f"{_shape(first)}, {_shape(second)}: only files of one geometry can be compared")
    return int(few)


def _kv_heads(scores: AnyScores) -> int | None:
    if scores.geometry is not None:
        return scores.geometry.num_key_value_heads
    return int(scores.mean.shape[1]) if scores.heads == "kv" else None


def _widened(scores: AnyScores, other: AnyScores) -> AnyScores:
    """A ranking with as many layers and heads as the other file has; anything else as it is."""
    if not scores.is_ranking or scores.geometry is not None:
        return scores
    layers, heads = scores.mean.shape
    width = max(heads, other.mean.shape[1])
    if scores.heads != other.heads:
        group = other.mean.shape[1]
        width = other.geometry.num_attention_heads if other.geometry else -(-heads // group) * group
    wider = np.zeros((max(layers, other.mean.shape[0]), max(width, heads)))
    wider[:layers, :heads] = scores.mean
    return replace(scores, mean=wider)


def _shape(scores: AnyScores) -> str:
    layers, heads = scores.mean.shape
    shared = ""
    if scores.geometry is not None and scores.heads == "query":
        shared = f" (sharing {scores.geometry.num_key_value_heads} KV heads)"
    return f"{scores.path.name} has {layers} layers of {heads} {_WORDS[scores.heads]}{shared}"


TOPS = (10, 20, 50, 100)
MOVED_AMONG = 50  # heads count as moved when they are among so many best of one side
FEWEST_CLUSTERS = 4  # for a split-half forecast


@dataclass(frozen=True)
class Overlap:
    """How many of the best `k` heads both sides share; `by_chance` is what two random rankings would."""

    k: int
    shared: float
    by_chance: float


@dataclass(frozen=True)
class Move:
    """A head with its scores and ranks (from 1; tied heads share the mean rank) on both sides."""

    layer: int
    head: int
    first_score: float
    second_score: float
    first_rank: float
    second_rank: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two files head by head; `heads` says what is compared, `query` or `kv`, `first` and `second` are `[L, N]`.

    `spearman` runs over all heads, with its interval (see `spearman_interval`); None where one side gives all heads
    the same score. `attainable`: the Spearman that two files with the noise of these would reach if their true
    rankings were the same, the root of the product of their split-half forecasts; None where trials are missing.
    """

    first: Floats
    second: Floats
    heads: str
    spearman: float | None
    low: float | None
    high: float | None
    attainable: float | None
    overlaps: tuple[Overlap, ...]
    moved: tuple[Move, ...]
    notes: tuple[str, ...]


def compare(
    first: AnyScores, second: AnyScores, tops: Sequence[int] = TOPS, num_moved: int = 10, how: str = "mean"
) -> Comparison:
    """Compare two files of one geometry, brought onto the same heads by `aligned`.

    Tops are cut to the number of heads that score above 0 on both sides. Raises `OptionError` as `aligned`, for a
    negative `num_moved` and for a top below 1.
    """
    if num_moved < 0:
        raise OptionError(f"num_moved is {num_moved}, need at least 0")
    sides = aligned(first, second, how)
    a, b = sides[0].table, sides[1].table
    low, high = spearman_interval(a, b)
    return Comparison(
        first=a,
        second=b,
        heads="query" if first.heads == second.heads == "query" else "kv",
        spearman=_known(spearman(a, b)),
        low=_known(low),
        high=_known(high),
        attainable=_attainable(sides),
        overlaps=overlaps(a, b, tops),
        moved=moved_heads(a, b, num_moved),
        notes=tuple(_notes(sides)),
    )


def overlaps(a: Floats, b: Floats, tops: Sequence[int] = TOPS) -> tuple[Overlap, ...]:
    """The overlap of the best k for each k of `tops`, cut to the heads above 0 on both sides and to fewer than all.

    >>> overlaps(np.array([[0.9, 0.5, 0.1, 0.0]]), np.array([[0.4, 0.0, 0.5, 0.1]]), (2, 10))
    (Overlap(k=2, shared=1.0, by_chance=1.0), Overlap(k=3, shared=2.0, by_chance=2.25))
    """
    if any(k < 1 for k in tops):
        raise OptionError(f"the tops are {', '.join(map(str, tops))}, need at least 1")
    ranked = min(ranked_heads(a), ranked_heads(b))
    fitting = {min(k, ranked) for k in tops if min(k, ranked) < a.size}
    cut = sorted(fitting - {0})
    return tuple(Overlap(k, top_k_overlap(a, b, k), k * k / a.size) for k in cut)


def moved_heads(a: Floats, b: Floats, count: int = 10) -> tuple[Move, ...]:
    """The heads whose rank changed most, by the ratio of their two ranks, among the 50 best of either side.

    A ratio, since from 2 to 20 is further than from 502 to 520.
    """
    ranks = midranks(a.ravel()), midranks(b.ravel())
    ratio = np.abs(np.log2(ranks[0] / ranks[1]))
    ratio[np.minimum(*ranks) > MOVED_AMONG] = 0.0
    chosen = [int(i) for i in np.argsort(-ratio, kind="stable")[:count] if ratio[i] > 0]
    scores = a.ravel().tolist(), b.ravel().tolist()
    return tuple(
        Move(i // a.shape[1], i % a.shape[1], scores[0][i], scores[1][i], float(ranks[0][i]), float(ranks[1][i]))
        for i in chosen
    )


def _attainable(sides: tuple[Side, Side]) -> float | None:
    whole = 1.0
    for side in sides:
        trials = side.trials
        if trials is None or trials.num_clusters < FEWEST_CLUSTERS:
            return None
        whole *= split_half(trials, top=1, num_splits=50).whole
    return _known(whole**0.5)


def _notes(sides: tuple[Side, Side]) -> list[str]:
    notes = [note for note in (side.note for side in sides) if note]
    for scores in (side.scores for side in sides):
        name, count = scores.path.name, ranked_heads(scores.mean)
        if scores.is_ranking:
            notes.append(f"{name}: a ranking of {count} heads without scores; all other heads are tied behind them")
        elif count <= max(TOPS) < scores.mean.size:
            notes.append(f"{name}: only {count} heads score above 0")
        tied = int((scores.mean == scores.mean.max()).sum())
        if count and tied > 1:
            notes.append(f"{name}: {tied} heads share the highest score; a top that cuts ties counts parts of heads")
    models = [side.scores.model for side in sides]
    if all(models) and models[0] != models[1]:
        notes.append(f"the files name different models: {models[0]} and {models[1]}")
    if np.array_equal(sides[0].table, sides[1].table):
        notes.append("both files hold the same scores")
    return notes


def _known(number: float) -> float | None:
    return number if np.isfinite(number) else None

"""Two score files brought onto the same heads."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores, check_how, reduce_to_kv
from headprobe.scores.head_scores import Floats
from headprobe.scores.uncertainty import ClusteredTrials

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

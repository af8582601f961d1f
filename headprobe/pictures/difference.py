"""Two score files as one picture: how far each head lies apart."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from headprobe.errors import OptionError
from headprobe.pictures.caption import HeatmapContent, checked_top
from headprobe.pictures.subject import Subject, kv_heads_of, subject_of
from headprobe.pictures.wording import count, printable
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats, normalize, rank_heads

PERCENT = 100.0


@dataclass(frozen=True, eq=False)
class Pair:
    """Two tables `[layers, heads]` of the same heads, in one unit."""

    first: Subject
    second: Subject
    tables: tuple[Floats, Floats]
    unit: str


def pair_of(first: AnyScores, second: AnyScores, kv_heads: bool = False, num_kv_heads: int | None = None) -> Pair:
    """The two files side by side: both over KV heads where one of them has no others.

    Scores of one method are compared as they are; those of different methods, which share no unit, as each head's
    share of the sum over all heads, in percent. Raises `OptionError` for a ranking, which has no scores, and for
    models of another shape.
    """
    for scores in (first, second):
        if scores.is_ranking:
            raise OptionError(f"{scores.path.name} is a ranking without scores; `headprobe scores compare` takes it")
    joined = kv_heads or first.heads != second.heads
    told = kv_heads_of(first), kv_heads_of(second)
    groups = [None if own else num_kv_heads or other for own, other in (told, told[::-1])]
    subjects = subject_of(first, joined, groups[0]), subject_of(second, joined, groups[1])
    shapes = [f"{subject.table.shape[0]} x {subject.table.shape[1]}" for subject in subjects]
    if shapes[0] != shapes[1]:
        raise OptionError(
            f"{first.path.name} has {shapes[0]} heads and {second.path.name} {shapes[1]}: nothing to set against"
        )
    if first.method is not None and first.method == second.method:
        return Pair(*subjects, (subjects[0].table, subjects[1].table), "mean score")
    tables = [normalize(subject.table) * PERCENT for subject in subjects]
    return Pair(*subjects, (tables[0], tables[1]), "share of all score in percent")


def difference_content(
    first: AnyScores, second: AnyScores, top: int, kv_heads: bool = False, num_kv_heads: int | None = None
) -> HeatmapContent:
    """The first file's heads minus the second's; marked are those that lie furthest apart. Raises as `pair_of`."""
    pair = pair_of(first, second, kv_heads, num_kv_heads)
    table = pair.tables[0] - pair.tables[1]
    furthest = [(layer, head, float(table[layer, head])) for layer, head, far in rank_heads(np.abs(table)) if far > 0.0]
    names = _names(first, second)
    return HeatmapContent(
        table=table,
        top=tuple(furthest[: checked_top(top)]),
        head_name=pair.first.head_name,
        title=f"{names[0]} minus {names[1]}",
        subtitle=f"first: {pair.first.subtitle}; second: {pair.second.subtitle}",
        facts=(*_facts(pair, first, second), pair.first.facts[-1]),
        scale_title=f"difference of the {pair.unit}",
        group_size=pair.first.group_size,
        asked=top,
        diverging=True,
    )


def _names(first: AnyScores, second: AnyScores) -> tuple[str, str]:
    """What tells the two files apart: file names, or paths where the names are the same."""
    if first.path.name != second.path.name:
        return printable(first.path.name), printable(second.path.name)
    return printable(str(first.path)), printable(str(second.path))


def _facts(pair: Pair, first: AnyScores, second: AnyScores) -> list[str]:
    models = sorted({printable(scores.model) for scores in (first, second) if scores.model is not None})
    told = [f"{count(len(models), 'model')[2:]} {' and '.join(models)}"] if models else []
    return [*told, f"first: {pair.first.facts[0]}", f"second: {pair.second.facts[0]}"]

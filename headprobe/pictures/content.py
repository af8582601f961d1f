"""What a heatmap shows and says in words: the scores of one file, or the difference of two."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10

import numpy as np

from headprobe.errors import OptionError, shown
from headprobe.pictures.style import count, printable
from headprobe.pictures.subject import Subject, kv_heads_of, subject_of
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats, HeadScores, normalize, rank_heads

# What pictures say about the scores they show, in words.

KINDS = ("distribution", "layers", "coverage", "ranks", "budgets")  # of pictures, beside the heatmap


def check_kind(kind: str) -> None:
    """Raise `OptionError` for a kind of picture that is neither `heatmap` nor one of `KINDS`."""
    if kind not in ("heatmap", *KINDS):
        raise unknown_kind(kind)


def unknown_kind(kind: str) -> OptionError:
    """The error that names all kinds."""
    return OptionError(f"no kind of picture is called {shown(kind)}; there are heatmap, {', '.join(KINDS)}")


@dataclass(frozen=True)
class PictureOptions:
    """What the kinds may be asked: `top` heads, KV heads instead of query heads, and the rule of the budgets."""

    top: int = 10
    kv_heads: bool = False
    num_kv_heads: int | None = None
    budget: int = 128
    beta: float = 1.2
    window: int = 8
    prompt_tokens: int = 8192


@dataclass(frozen=True, eq=False)
class HeatmapContent:
    """The table `[layers, heads]` that is drawn, the heads to mark in order of rank, and the words around it.

    `group_size` heads stand together (those that share a KV head); `diverging` tables are differences, whose colours
    run from -reach to +reach; `asked` heads were to be marked, of which `top` are worth it.
    """

    table: Floats
    top: tuple[tuple[int, int, float], ...]
    head_name: str
    title: str
    subtitle: str
    facts: tuple[str, ...]
    scale_title: str = "mean score of the passing trials"
    group_size: int = 1
    asked: int = 0
    diverging: bool = False

    @property
    def limits(self) -> tuple[float, float]:
        """The scores at the ends of the colour scale; one of them is not 0."""
        low, high = min(float(self.table.min()), 0.0), max(float(self.table.max()), 0.0)
        reach = max(-low, high) or 1.0
        if self.diverging:
            return -reach, reach
        return (low, high) if high > low else (0.0, reach)

    @property
    def decimals(self) -> int:
        """Decimals that show three digits of the best score."""
        best = float(abs(self.table).max())
        return 3 if best == 0.0 else min(max(3, 2 - floor(log10(best))), 9)

    def number(self, score: float) -> str:
        """A score as all pictures write it; differences have a sign."""
        sign = "+" if self.diverging and score != 0.0 else ""
        return f"{score:{sign}.{self.decimals}f}"


def heatmap_content(
    scores: HeadScores | AnyScores, top: int, kv_heads: bool, num_kv_heads: int | None = None
) -> HeatmapContent:
    """What a heatmap shows: the heads of the file, or KV heads by the mean over their query heads.

    Heads that score 0 or less have no rank. Raises `OptionError` when `top` is negative, or `kv_heads` is asked of a
    file that does not state how query heads share KV heads.
    """
    subject = subject_of(scores, kv_heads, num_kv_heads)
    return HeatmapContent(
        table=subject.table,
        top=tuple(head for head in rank_heads(subject.table)[: checked_top(top)] if head[2] > 0.0),
        head_name=subject.head_name,
        title=subject.title,
        subtitle=subject.subtitle,
        facts=subject.facts,
        scale_title=subject.scale_title,
        group_size=subject.group_size,
        asked=top,
    )


def checked_top(top: int) -> int:
    """`top`, which must not be negative (`OptionError`)."""
    if top < 0:
        raise OptionError(f"top is {top}, need at least 0")
    return top


def tick_step(count: int, most: int) -> int:
    """The power of two that leaves at most `most` ticks on `count` rows or columns.

    >>> tick_step(8, 16), tick_step(32, 16), tick_step(80, 16)
    (1, 2, 8)
    """
    step = 1
    while -(-count // step) > most:
        step *= 2
    return step


# Two score files as one picture: how far each head lies apart.

PERCENT = 100.0


@dataclass(frozen=True, eq=False)
class TablePair:
    """Two tables `[layers, heads]` of the same heads, in one unit."""

    first: Subject
    second: Subject
    tables: tuple[Floats, Floats]
    unit: str


def pair_of(first: AnyScores, second: AnyScores, kv_heads: bool = False, num_kv_heads: int | None = None) -> TablePair:
    """The two files side by side: both over KV heads where one of them has no others.

    Scores of one method are compared as they are; those of different methods, which share no unit, as each head's
    share of the sum over all heads, in percent. Raises `OptionError` for a ranking, which has no scores, and for
    models of another shape.
    """
    for scores in (first, second):
        if scores.is_ranking:
            raise OptionError(f"{scores.path.name} is a ranking without scores; use `headprobe scores compare`")
    joined = kv_heads or first.heads != second.heads
    told = kv_heads_of(first), kv_heads_of(second)
    groups = [None if own else num_kv_heads or other for own, other in (told, told[::-1])]
    subjects = subject_of(first, joined, groups[0]), subject_of(second, joined, groups[1])
    shapes = [f"{subject.table.shape[0]} x {subject.table.shape[1]}" for subject in subjects]
    if shapes[0] != shapes[1]:
        raise OptionError(
            f"{first.path.name} has {shapes[0]} heads and {second.path.name} {shapes[1]}: they cannot be compared"
        )
    if first.method is not None and first.method == second.method:
        return TablePair(*subjects, (subjects[0].table, subjects[1].table), "mean score")
    tables = [normalize(subject.table) * PERCENT for subject in subjects]
    return TablePair(*subjects, (tables[0], tables[1]), "share of the total score in percent")


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
        scale_title=f"difference in the {pair.unit}",
        group_size=pair.first.group_size,
        asked=top,
        diverging=True,
    )


def _names(first: AnyScores, second: AnyScores) -> tuple[str, str]:
    """What distinguishes the two files: file names, or paths where the names are the same."""
    if first.path.name != second.path.name:
        return printable(first.path.name), printable(second.path.name)
    return printable(str(first.path)), printable(str(second.path))


def _facts(pair: TablePair, first: AnyScores, second: AnyScores) -> list[str]:
    models = sorted({printable(scores.model) for scores in (first, second) if scores.model is not None})
    told = [f"{count(len(models), 'model')[2:]} {' and '.join(models)}"] if models else []
    return [*told, f"first: {pair.first.facts[0]}", f"second: {pair.second.facts[0]}"]

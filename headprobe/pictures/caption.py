"""What pictures say about the scores they show, in words."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor, log10

from headprobe.errors import OptionError, shown
from headprobe.pictures.subject import subject_of
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats, HeadScores, rank_heads

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
    file that does not tell how query heads share KV heads.
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

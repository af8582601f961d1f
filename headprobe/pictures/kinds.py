"""The kinds of pictures that a score file gives: each knows how to draw itself, say itself in lines, and as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

from headprobe.pictures.budgets import BudgetRule, HeadBudgets, budgets_figure
from headprobe.pictures.content import KINDS, PictureOptions, checked_top, unknown_kind
from headprobe.pictures.coverage import coverage_of
from headprobe.pictures.evidence import RankedHeads, coverage_figure, ranks_figure
from headprobe.pictures.profiles import Distribution, LayerProfile, distribution_figure, layers_figure
from headprobe.pictures.subject import Subject, subject_of
from headprobe.scores.any_scores import AnyScores


@dataclass(frozen=True)
class Picture:
    """A kind of picture of one file: `draw()` makes the figure, `lines` say it in a terminal, `record` in JSON."""

    subject: Subject
    draw: Callable[[], Figure]
    lines: list[str]
    record: dict[str, Any]


def _distribution(scores: AnyScores, options: PictureOptions) -> Picture:
    subject = subject_of(scores, options.kv_heads, options.num_kv_heads)
    found = Distribution.of(subject.table)
    return Picture(subject, lambda: distribution_figure(subject), found.lines(), found.record())


def _layers(scores: AnyScores, options: PictureOptions) -> Picture:
    subject = subject_of(scores, options.kv_heads, options.num_kv_heads)
    found = LayerProfile.of(subject.table)
    return Picture(subject, lambda: layers_figure(subject), found.lines(), found.record())


def _coverage(scores: AnyScores, options: PictureOptions) -> Picture:
    subject, found = subject_of(scores), coverage_of(scores)
    return Picture(subject, lambda: coverage_figure(subject, found), found.lines(), found.record())


def _ranks(scores: AnyScores, options: PictureOptions) -> Picture:
    subject, found = subject_of(scores), RankedHeads.of(scores, checked_top(options.top))
    return Picture(subject, lambda: ranks_figure(subject, found), found.lines(), found.record())


def _budgets(scores: AnyScores, options: PictureOptions) -> Picture:
    query = subject_of(scores, False, options.num_kv_heads)
    rule = BudgetRule(options.budget, options.beta, options.window, options.prompt_tokens)
    found = HeadBudgets.of(subject_of(scores, True, options.num_kv_heads).table, rule)
    return Picture(query, lambda: budgets_figure(query, found), found.lines(), found.record())


_KINDS: dict[str, Callable[[AnyScores, PictureOptions], Picture]] = {
    "distribution": _distribution,
    "layers": _layers,
    "coverage": _coverage,
    "ranks": _ranks,
    "budgets": _budgets,
}
assert tuple(_KINDS) == KINDS


def picture_of(kind: str, scores: AnyScores, options: PictureOptions) -> Picture:
    """The picture of `kind`, one of `KINDS`. Raises `OptionError` for another, or one that the file has nothing for."""
    if kind not in _KINDS:
        raise unknown_kind(kind)
    return _KINDS[kind](scores, options)

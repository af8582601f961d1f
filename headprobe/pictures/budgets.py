"""From scores to memory: query heads, the KV heads they share, and the tokens that each KV head may keep."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from headprobe.compression.budgets import head_score_budgets
from headprobe.errors import OptionError
from headprobe.evaluation.head_budgets import BudgetTable
from headprobe.pictures.budget_map import BudgetMap
from headprobe.pictures.content import tick_step
from headprobe.pictures.page import Sheet, head_line
from headprobe.pictures.style import BELOW_ZERO, INK, ON_PAPER, PAPER, along, hexadecimal, is_dark
from headprobe.pictures.subject import Subject
from headprobe.scores.head_scores import Floats, normalize, rank_heads

LISTED = 5
GAP = 0.42


@dataclass(frozen=True)
class BudgetRule:
    """HeadKV's rule: `budget` tokens for a KV head on average, the latest `window` of them for every head; the rest is
    allocated by score, more of it the closer `beta` is to 1; no head gets more than `prompt_tokens`."""

    budget: int = 128
    beta: float = 1.2
    window: int = 8
    prompt_tokens: int = 8192

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.window < 0:
            raise OptionError(
                f"prompt tokens are {self.prompt_tokens}, the window {self.window}: need 1 and 0 at least"
            )


@dataclass(frozen=True, eq=False)
class HeadBudgets:
    """Scores of the KV heads and the tokens that they may keep, both `[L, G]`."""

    rule: BudgetRule
    scores: Floats
    tokens: NDArray[np.int64]

    @classmethod
    def of(cls, kv_scores: Floats, rule: BudgetRule) -> HeadBudgets:
        """The budgets of KV heads that score so; scores below 0 count as 0. Raises as `head_score_budgets`."""
        tokens = head_score_budgets(
            normalize(kv_scores), rule.budget, floor=rule.window, beta=rule.beta, prompt_tokens=rule.prompt_tokens
        )
        return cls(rule, kv_scores, tokens)

    def facts(self) -> tuple[str, ...]:
        """Rule and outcome in words."""
        rule, low, high = self.rule, int(self.tokens.min()), int(self.tokens.max())
        full = self.tokens.size * rule.prompt_tokens
        return (
            f"{rule.budget:,} tokens per KV head on average, beta {rule.beta:g}, window {rule.window}",
            f"prompt of {rule.prompt_tokens:,} tokens",
            f"{low:,} to {high:,} tokens per head",
            f"{int(self.tokens.sum()):,} entries in all, {100 * self.tokens.sum() / full:.1f} % of a full cache",
        )

    def lines(self) -> list[str]:
        """What a terminal shows."""
        best = rank_heads(self.tokens.astype(np.float64))[:LISTED]
        most = ", ".join(f"{layer}-{head} {tokens:,.0f}" for layer, head, tokens in best)
        return [*self.facts(), f"most: {most}"]

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {**vars(self.rule), "total": int(self.tokens.sum()), "budgets": self.tokens.tolist()}


def budgets_figure(query: Subject, found: HeadBudgets) -> Figure:
    """The picture: scores of the heads of the file, of its KV heads, and the budgets, layers down in all three."""
    layers, groups = found.tokens.shape
    tables = [query.table, found.scores, found.tokens.astype(np.float64)]
    if query.head_name == "KV head":
        tables = tables[1:]
    cell = min(max(7.0 / layers, 0.13), 0.3)
    height = cell * layers
    sheet = Sheet(query.title, query.subtitle, (*found.facts(), *query.facts), body_height=height + 1.25)
    room = sheet.measure - GAP * (len(tables) - 1) - 0.1
    shares = [1.0] * len(tables) if len(tables) == 2 else [2.0, 1.0, 1.25]
    x = 0.1
    for index, (table, share) in enumerate(zip(tables, shares, strict=True)):
        width = room * share / sum(shares)
        is_last = index == len(tables) - 1
        axes = sheet.axes(x, 0.25, width, height)
        _draw_map(axes, table, int(query.table.shape[1] / groups) if index == 0 and len(tables) == 3 else 1)
        head_line(axes, ["query heads", "KV heads", "tokens kept"][index - len(tables)])
        if index == 0:
            axes.set_ylabel("layer", fontsize=9.0, color=hexadecimal(INK), labelpad=4)
        else:
            axes.set_yticks([])
        if is_last:
            _write_tokens(axes, found.tokens, width / groups, cell)
        _draw_scale(sheet.axes(x, height + 0.75, min(width, 2.2), 0.1), table, "tokens" if is_last else "score")
        x += width + GAP
    return sheet.page.figure


def _colours(table: Floats) -> tuple[ListedColormap, float, float]:
    low, high = min(float(table.min()), 0.0), max(float(table.max()), 0.0)
    reach = max(-low, high) or 1.0
    shades = [along(ON_PAPER if s >= 0 else BELOW_ZERO, abs(s)) for s in np.linspace(low, high or reach, 256) / reach]
    return ListedColormap(np.array(shades) / 255.0), low, high if high > low else reach


def _draw_map(axes: Axes, table: Floats, group_size: int) -> None:
    rows, columns = table.shape
    palette, low, high = _colours(table)
    axes.pcolormesh(
        np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5, table, cmap=palette, vmin=low, vmax=high,
        edgecolors=hexadecimal(PAPER), linewidth=0.6,
    )  # fmt: skip
    if group_size > 1:
        axes.vlines(np.arange(group_size, columns, group_size) - 0.5, -0.5, rows - 0.5, color=hexadecimal(PAPER),
                    linewidth=2.0)  # fmt: skip
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(0, columns, tick_step(columns, 10)))
    axes.set_yticks(range(0, rows, tick_step(rows, 20)))


def _write_tokens(axes: Axes, tokens: NDArray[np.int64], width: float, cell: float) -> None:
    """The numbers themselves, where the tiles have room for them."""
    digits = len(str(int(tokens.max())))
    size = min(7.5, cell * 36, width * 100 / digits)
    if size < 4.0:
        return
    most = float(tokens.max()) or 1.0
    for (layer, head), number in np.ndenumerate(tokens):
        ink = PAPER if is_dark(along(ON_PAPER, float(number) / most)) else INK
        axes.text(head, layer, str(number), ha="center", va="center", fontsize=size, color=hexadecimal(ink))


def _draw_scale(axes: Axes, table: Floats, unit: str) -> None:
    palette, low, high = _colours(table)
    axes.pcolormesh(np.linspace(low, high, 257), [0, 1], np.linspace(low, high, 256)[None, :], cmap=palette,
                    edgecolors="face", linewidth=0.2)  # fmt: skip
    axes.set(xlim=(low, high), yticks=[])
    text = "{:,.0f}" if unit == "tokens" else "{:.3g}"
    axes.set_xticks([low, high], [text.format(low), text.format(high) + f" {unit}"])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")


def budget_map_figure(subject: Subject, table: BudgetTable) -> Figure:
    """The picture: scores of the heads of the file and of its KV heads and the budgets, one row per compressed layer.

    `subject` is that of the file's own heads.
    """
    rows = list(table.layers)
    own = subject.table[rows]
    ungrouped = own.shape == table.capacity.shape  # then the heads of the file are the KV heads
    drawn: Any = BudgetMap(table)
    name = "KV head" if ungrouped else subject.head_name
    figure = budgets_figure(replace(subject, table=own, head_name=name), drawn)
    if rows != list(range(len(rows))):  # rows are numbered by their place; name the layers instead
        step = tick_step(len(rows), 20)
        figure.axes[0].set_yticks(range(0, len(rows), step), [str(layer) for layer in rows[::step]])
    return figure

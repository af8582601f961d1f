"""Needles on compressed caches, in pictures: a small map per policy and budget, and recall over budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from headprobe.errors import OptionError
from headprobe.evaluation.needle_summary import Cell, GridSummary
from headprobe.evaluation.summaries import CellKey
from headprobe.evaluation.task_summary import TaskCell, TaskSummary
from headprobe.evaluation.variants import RANDOM, SHUFFLED
from headprobe.pictures.page import GRID, LEFT, Sheet, head_line, label_axes
from headprobe.pictures.style import BELOW_ZERO, INK, ON_PAPER, PAPER, QUIET, RING, along, count, hexadecimal, printable

# Needles in haystacks on compressed caches: for each policy and budget a small map, lengths down, depths across.

NAMES, GAP_X, GAP_Y, HEAD, FOOT, SCALE = 1.55, 0.12, 0.15, 0.34, 0.46, 0.1  # inches
ROW = 0.19  # inches of a length
MOST_ROWS = 60
METRICS = {"exact_match": "share of exact answers", "answer_f1": "mean F1 of the answers"}
CURVES = {"exact_match": "exact", "answer_f1": "F1", "score": "score"}


def needle_grid_figure(
    summary: GridSummary, title: str, subtitle: str, *, metric: str = "exact_match", baselines: bool = False
) -> Figure:
    """The picture: one row per policy, one column per budget, `full` (which has no budget) alone in the first row.

    A tile is the mean over the prompts of one length and depth; where none was measured there is only an outline.
    Raises `OptionError` for an unknown metric, no rows, or more policies than fit.
    """
    if metric not in METRICS:
        raise OptionError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
    rows = panel_rows(summary, baselines)
    if not 1 <= len(rows) <= MOST_ROWS:
        raise OptionError(f"{len(rows)} policies to draw, need 1 to {MOST_ROWS}")
    columns = max(len(summary.budgets), 1)
    high = ROW * len(summary.lengths)
    body = HEAD + len(rows) * (high + GAP_Y) + FOOT + SCALE
    gaps = ("outlines: not measured",) if _has_gaps(summary, rows, metric) else ()
    sheet = Sheet(printable(title), subtitle, (count(summary.num_prompts, "prompt"), *gaps), body)
    width = (sheet.measure - NAMES - GAP_X * (columns - 1)) / columns
    y = 0.0
    for index, keys in enumerate(rows):
        if keys[0].budget is not None and (index == 0 or rows[index - 1][0].budget is None):
            y += HEAD
            _write_budgets(sheet, summary.budgets, width, y)
        _name(sheet, keys[0].name, y + high / 2)
        for key in keys:
            column = 0 if key.budget is None else summary.budgets.index(key.budget)
            axes = sheet.axes(NAMES + column * (width + GAP_X), y, width, high)
            _draw(axes, summary, key, metric)
            _label(axes, summary, is_first=column == 0, is_last=index == len(rows) - 1)
        y += high + GAP_Y
    _draw_scale(sheet.axes(NAMES, body - SCALE, min(width, 1.8), SCALE), METRICS[metric])
    return sheet.page.figure


def panel_rows(summary: GridSummary, baselines: bool) -> list[list[CellKey]]:
    """Keys of each row of the picture: one policy at all budgets."""
    rows: dict[str, list[CellKey]] = {}
    for key in summary.keys:
        if baselines or not key.is_baseline:
            rows.setdefault(key.name, []).append(key)
    return list(rows.values())


def _has_gaps(summary: GridSummary, rows: Sequence[Sequence[CellKey]], metric: str) -> bool:
    return any(
        summary.place(key, length, depth, metric) is None
        for keys in rows for key in keys for length in summary.lengths for depth in summary.depths
    )  # fmt: skip


def _name(sheet: Sheet, name: str, y: float) -> None:
    sheet.page.text(LEFT, sheet.y + y, printable(name, 24), 9.0, va="center")


def _write_budgets(sheet: Sheet, budgets: Sequence[int], width: float, y: float) -> None:
    """The budgets over the first row that has them."""
    for column, budget in enumerate(budgets):
        text = f"{budget:,} entries per KV head" if column == 0 else f"{budget:,}"
        sheet.page.text(LEFT + NAMES + column * (width + GAP_X), sheet.y + y - 0.07, text, 8.5,
                        color=hexadecimal(QUIET))  # fmt: skip


def _draw(axes: Axes, summary: GridSummary, key: CellKey, metric: str) -> None:
    rows, columns = len(summary.lengths), len(summary.depths)
    for y, length in enumerate(summary.lengths):
        for x, depth in enumerate(summary.depths):
            value = summary.place(key, length, depth, metric)
            fill = PAPER if value is None else along(ON_PAPER[:6], value)
            edge = ON_PAPER[0] if value is None else PAPER
            axes.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=hexadecimal(fill), edgecolor=hexadecimal(edge),
                          linewidth=0.8)
            )  # fmt: skip
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))


def _label(axes: Axes, summary: GridSummary, *, is_first: bool, is_last: bool) -> None:
    axes.tick_params(labelsize=7.5, pad=2)
    axes.set_yticks(range(len(summary.lengths)), [f"{length:,}" for length in summary.lengths] if is_first else [])
    if not is_first:
        axes.set_yticks([])
    if not is_last:
        axes.set_xticks([])
        return
    ends = sorted({0, len(summary.depths) - 1})
    axes.set_xticks(ends, [f"{summary.depths[i]:.3g}" for i in ends])
    if is_first:
        axes.set_xlabel("depth, percent", fontsize=8.0, color=hexadecimal(INK), labelpad=1)


def _draw_scale(axes: Axes, text: str) -> None:
    shades = np.array([along(ON_PAPER[:6], i / 255) for i in range(256)]) / 255.0
    axes.pcolormesh(
        np.linspace(0, 1, 257), [0, 1], np.linspace(0, 1, 256)[None, :], cmap=ListedColormap(shades),
        edgecolors="face", linewidth=0.2,
    )  # fmt: skip
    axes.set(xlim=(0, 1), yticks=[])
    axes.set_xticks([0, 1], ["0", f"1  {text}"])
    axes.tick_params(labelsize=8.0, pad=2)
    axes.get_xticklabels()[-1].set_horizontalalignment("left")


# Recall over budget: a panel a policy, the others in grey behind it, baselines and the full cache beside it.

COLUMNS = 4
BETWEEN_X, BETWEEN_Y, HIGH, LEGEND, AXIS = 0.2, 0.46, 1.25, 0.5, 0.42  # inches
WIDEST = 3.2
PALE = "#d3d3cd"
STYLES: dict[str, dict[str, Any]] = {
    RANDOM: {"color": hexadecimal(RING), "linestyle": (0, (1, 1.4)), "linewidth": 1.4},
    SHUFFLED: {"color": hexadecimal(BELOW_ZERO[3]), "linestyle": (0, (4, 1.6)), "linewidth": 1.3},
}
OWN: dict[str, Any] = {"color": hexadecimal(ON_PAPER[4]), "linewidth": 1.9, "marker": "o", "markersize": 3.6}
FULL: dict[str, Any] = {"color": hexadecimal(INK), "linewidth": 0.9, "linestyle": (0, (5, 3))}


def recall_curve_figure(
    summary: GridSummary | TaskSummary, title: str, subtitle: str, *, metric: str = "exact_match"
) -> Figure:
    """The picture: `metric` over all prompts by budget (logarithmic), with 95 % intervals; a `score` of tasks too.

    Raises `OptionError` for an unknown metric, or where nothing but `full` was measured.
    """
    if metric not in CURVES:
        raise OptionError(f"no metric is called {metric!r}; there are {', '.join(CURVES)}")
    names = list(dict.fromkeys(cell.key.rule for cell in summary.cells if cell.key.budget is not None))
    if not names:
        raise OptionError("only the full cache was measured: there is no budget to draw a curve over")
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    body = LEGEND + rows * HIGH + (rows - 1) * BETWEEN_Y + AXIS
    sheet = Sheet(printable(title), subtitle, (count(summary.num_prompts, "prompt"),), body)
    width = min((sheet.measure - BETWEEN_X * (columns - 1)) / columns, WIDEST)
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        axes = sheet.axes(column * (width + BETWEEN_X), LEGEND + row * (HIGH + BETWEEN_Y), width, HIGH)
        _draw_panel(axes, summary, name, metric)
        head_line(axes, printable(name, 24))
        _label_curve(axes, summary, is_first=column == 0, is_last=index + columns >= len(names), metric=metric)
    _draw_legend(sheet, summary)
    return sheet.page.figure


def curve(summary: GridSummary | TaskSummary, rule: str, sources: Sequence[str | None]) -> list[Cell | TaskCell]:
    """Cells of a policy with scores of these sources, by rising budget."""
    found: list[Cell | TaskCell] = [
        cell for cell in summary.cells if cell.key.rule == rule and cell.key.scores in sources
    ]
    return sorted((cell for cell in found if cell.key.budget is not None), key=lambda cell: cell.key.budget or 0)


def _draw_panel(axes: Axes, summary: GridSummary | TaskSummary, rule: str, metric: str) -> None:
    budgets = summary.budgets
    axes.set_xscale("log", base=2)
    top = _top(summary, metric)
    axes.set(xlim=(budgets[0] / 1.25, budgets[-1] * 1.25), ylim=(-0.03 * top, 1.03 * top))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for other in dict.fromkeys(cell.key.rule for cell in summary.cells if cell.key.budget is not None):
        if other != rule:
            _line(axes, curve(summary, other, (None, "real")), metric, color=PALE, linewidth=0.9, zorder=1)
    for cell in summary.cells:
        if cell.key.rule == "full" and (mean := getattr(cell, metric).mean) is not None:
            axes.axhline(mean, zorder=2, **FULL)
    for source, style in STYLES.items():
        _line(axes, curve(summary, rule, (source,)), metric, zorder=3, **style)
    own = curve(summary, rule, (None, "real"))
    _whiskers(axes, own, metric)
    _line(axes, own, metric, zorder=5, clip_on=False, **OWN)


def _top(summary: GridSummary | TaskSummary, metric: str) -> float:
    """Where the scale ends: at 1, and where all that is drawn stays far below it, as scores of tasks do, earlier."""
    if metric != "score":
        return 1.0
    drawn = [getattr(cell, metric) for cell in summary.cells]
    most = max((found.high or found.mean or 0.0 for found in drawn), default=1.0)
    return next((top for top in (0.1, 0.2, 0.4, 0.6, 0.8) if most <= top), 1.0)


def _line(axes: Axes, cells: Sequence[Cell | TaskCell], metric: str, **style: Any) -> None:
    """A line through what was measured; a gap stays a gap."""
    values = [getattr(cell, metric).mean for cell in cells]
    axes.plot([cell.key.budget or 0 for cell in cells], [float("nan") if v is None else v for v in values], **style)


def _whiskers(axes: Axes, cells: Sequence[Cell | TaskCell], metric: str) -> None:
    for cell in cells:
        found = getattr(cell, metric)
        if found.low is not None:
            style: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.6, "zorder": 4, "color": OWN["color"]}
            axes.vlines(cell.key.budget or 0, found.low, found.high, **style)


def _label_curve(axes: Axes, summary: GridSummary | TaskSummary, *, is_first: bool, is_last: bool, metric: str) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(summary.budgets, [f"{budget:,}" if is_last else "" for budget in summary.budgets])
    ticks = [0, _top(summary, metric) / 2, _top(summary, metric)]
    axes.set_yticks(ticks, [f"{tick:g}" if is_first else "" for tick in ticks])
    axes.tick_params(labelsize=7.5)
    if is_last and is_first:
        label_axes(axes, "entries per KV head")
    if is_first:
        axes.set_ylabel(CURVES[metric], fontsize=8.5, color=hexadecimal(INK), labelpad=2)


def _draw_legend(sheet: Sheet, summary: GridSummary | TaskSummary) -> None:
    sources = {cell.key.scores for cell in summary.cells}
    parts: list[tuple[str, dict[str, Any]]] = [("this policy, 95 % interval", dict(OWN))]
    parts += [(f"on {source} scores", dict(style)) for source, style in STYLES.items() if source in sources]
    parts += [("full cache", dict(FULL)), ("other policies", {"color": PALE, "linewidth": 1.2})]
    axes = sheet.axes(0, 0, sheet.measure, 0.2)
    axes.set_axis_off()
    handles = [Line2D([], [], label=text, **style) for text, style in parts]
    axes.legend(
        handles=handles, loc="center left", bbox_to_anchor=(0, 0.5), ncols=len(parts), frameon=False, fontsize=8.0,
        labelcolor=hexadecimal(QUIET), handlelength=2.2, columnspacing=1.6, borderpad=0, borderaxespad=0,
    )  # fmt: skip

"""Needles in haystacks on compressed caches: for each policy and budget a small map, lengths down, depths across."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from headprobe.errors import OptionError
from headprobe.evaluation.needle_summary import CellKey, GridSummary
from headprobe.pictures.colours import INK, ON_PAPER, PAPER, QUIET, along, hexadecimal
from headprobe.pictures.sheet import LEFT, Sheet
from headprobe.pictures.wording import count, printable

NAMES, GAP_X, GAP_Y, HEAD, FOOT, SCALE = 1.55, 0.12, 0.15, 0.34, 0.46, 0.1  # inches
ROW = 0.19  # inches of a length
MOST_ROWS = 60
METRICS = {"exact_match": "share of exact answers", "answer_f1": "mean F1 of the answers"}


def needle_grid_figure(
    summary: GridSummary, title: str, subtitle: str, *, metric: str = "exact_match", baselines: bool = False
) -> Figure:
    """The picture: a row a policy, a column a budget, `full` (which has no budget) alone in the first row.

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
        text = f"{budget:,} entries a KV head" if column == 0 else f"{budget:,}"
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

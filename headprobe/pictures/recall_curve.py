"""Recall over budget: a panel a policy, the others in grey behind it, baselines and the full cache beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator

from headprobe.errors import OptionError
from headprobe.evaluation.needle_summary import Cell, GridSummary
from headprobe.evaluation.variants import RANDOM, SHUFFLED
from headprobe.pictures.colours import BELOW_ZERO, INK, ON_PAPER, QUIET, RING, hexadecimal
from headprobe.pictures.needle_grid import METRICS
from headprobe.pictures.sheet import GRID, Sheet, head_line, label_axes
from headprobe.pictures.wording import count, printable

COLUMNS = 4
GAP_X, GAP_Y, HIGH, LEGEND, AXIS = 0.2, 0.46, 1.25, 0.5, 0.42  # inches
WIDEST = 3.2
PALE = "#d3d3cd"
STYLES: dict[str, dict[str, Any]] = {
    RANDOM: {"color": hexadecimal(RING), "linestyle": (0, (1, 1.4)), "linewidth": 1.4},
    SHUFFLED: {"color": hexadecimal(BELOW_ZERO[3]), "linestyle": (0, (4, 1.6)), "linewidth": 1.3},
}
OWN: dict[str, Any] = {"color": hexadecimal(ON_PAPER[4]), "linewidth": 1.9, "marker": "o", "markersize": 3.6}
FULL: dict[str, Any] = {"color": hexadecimal(INK), "linewidth": 0.9, "linestyle": (0, (5, 3))}


def recall_curve_figure(summary: GridSummary, title: str, subtitle: str, *, metric: str = "exact_match") -> Figure:
    """The picture: `metric` over all lengths and depths by budget (logarithmic), with 95 % intervals.

    Raises `OptionError` for an unknown metric, or where nothing but `full` was measured.
    """
    if metric not in METRICS:
        raise OptionError(f"no metric is called {metric!r}; there are {', '.join(METRICS)}")
    names = [name for name in dict.fromkeys(cell.key.policy for cell in summary.cells) if name != "full"]
    if not names:
        raise OptionError("only the full cache was measured: there is no budget to draw a curve over")
    columns = min(COLUMNS, len(names))
    rows = -(-len(names) // columns)
    body = LEGEND + rows * HIGH + (rows - 1) * GAP_Y + AXIS
    sheet = Sheet(printable(title), subtitle, (count(summary.num_prompts, "prompt"),), body)
    width = min((sheet.measure - GAP_X * (columns - 1)) / columns, WIDEST)
    for index, name in enumerate(names):
        row, column = divmod(index, columns)
        axes = sheet.axes(column * (width + GAP_X), LEGEND + row * (HIGH + GAP_Y), width, HIGH)
        _draw_panel(axes, summary, name, metric)
        head_line(axes, printable(name, 24))
        _label(axes, summary, is_first=column == 0, is_last=index + columns >= len(names), metric=metric)
    _draw_legend(sheet, summary)
    return sheet.page.figure


def curve(summary: GridSummary, policy: str, sources: Sequence[str | None]) -> list[Cell]:
    """Cells of a policy with scores of these sources, by rising budget."""
    found = [cell for cell in summary.cells if cell.key.policy == policy and cell.key.scores in sources]
    return sorted((cell for cell in found if cell.key.budget is not None), key=lambda cell: cell.key.budget or 0)


def _draw_panel(axes: Axes, summary: GridSummary, policy: str, metric: str) -> None:
    budgets = summary.budgets
    axes.set_xscale("log", base=2)
    axes.set(xlim=(budgets[0] / 1.25, budgets[-1] * 1.25), ylim=(-0.03, 1.03))
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for other in dict.fromkeys(cell.key.policy for cell in summary.cells):
        if other not in ("full", policy):
            _line(axes, curve(summary, other, (None, "real")), metric, color=PALE, linewidth=0.9, zorder=1)
    for cell in summary.cells:
        if cell.key.policy == "full" and (mean := getattr(cell, metric).mean) is not None:
            axes.axhline(mean, zorder=2, **FULL)
    for source, style in STYLES.items():
        _line(axes, curve(summary, policy, (source,)), metric, zorder=3, **style)
    own = curve(summary, policy, (None, "real"))
    _whiskers(axes, own, metric)
    _line(axes, own, metric, zorder=5, clip_on=False, **OWN)


def _line(axes: Axes, cells: Sequence[Cell], metric: str, **style: Any) -> None:
    """A line through what was measured; a gap stays a gap."""
    values = [getattr(cell, metric).mean for cell in cells]
    axes.plot([cell.key.budget or 0 for cell in cells], [float("nan") if v is None else v for v in values], **style)


def _whiskers(axes: Axes, cells: Sequence[Cell], metric: str) -> None:
    for cell in cells:
        found = getattr(cell, metric)
        if found.low is not None:
            style: dict[str, Any] = {"linewidth": 1.0, "alpha": 0.6, "zorder": 4, "color": OWN["color"]}
            axes.vlines(cell.key.budget or 0, found.low, found.high, **style)


def _label(axes: Axes, summary: GridSummary, *, is_first: bool, is_last: bool, metric: str) -> None:
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(summary.budgets, [f"{budget:,}" if is_last else "" for budget in summary.budgets])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"] if is_first else ["", "", ""])
    axes.tick_params(labelsize=7.5)
    if is_last and is_first:
        label_axes(axes, "entries per KV head")
    if is_first:
        axes.set_ylabel("exact" if metric == "exact_match" else "F1", fontsize=8.5, color=hexadecimal(INK), labelpad=2)


def _draw_legend(sheet: Sheet, summary: GridSummary) -> None:
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

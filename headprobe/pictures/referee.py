"""A referee's verdict as a picture: who agrees with whom, whose heads the answers need, what their budgets keep."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from headprobe.errors import NoPassingTrialError
from headprobe.evaluation.referee.result import NOISE, RefereeResult, Verdict
from headprobe.pictures.page import GRID, LEFT, RIGHT, Sheet, head_line
from headprobe.pictures.style import (
    BELOW_ZERO,
    INK,
    ON_PAPER,
    PAPER,
    QUIET,
    RING,
    along,
    count,
    hexadecimal,
    is_dark,
    printable,
)

CELL = 0.44  # inches of a square, and of a line beside it
NAMES = 0.9
PANEL = 2.1
GAP = 0.32


def referee_figure(result: RefereeResult) -> Figure:
    """Left a square for each pair of detectors: Spearman of their scores, and how many of the best heads they share
    (above the diagonal). Right for each detector the area under its knockout curve (dot, with its 95 % interval) beside
    that of random heads of the same layers (ring), and the share of answers left on budgets that its scores divide.

    Raises `NoPassingTrialError` where no detector scored heads.
    """
    scored = result.scored
    if not scored:
        raise NoPassingTrialError("no detector scored heads: there is nothing to draw")
    side = CELL * len(scored)
    width = LEFT + NAMES + side + 2 * (GAP + PANEL) + RIGHT
    subtitle = f"below the diagonal Spearman of the scores, above it how many of the best {result.top} heads are shared"
    sheet = Sheet(f"{printable(result.model)}: detectors of heads", subtitle, _facts(result), side + 0.85, width)
    _draw_agreement(sheet.axes(NAMES, 0.2, side, side), result)
    _draw_areas(sheet.axes(NAMES + side + GAP, 0.2, PANEL, side), scored)
    _draw_budgets(sheet.axes(NAMES + side + 2 * GAP + PANEL, 0.2, PANEL, side), result)
    return sheet.page.figure


def _facts(result: RefereeResult) -> list[str]:
    facts = [
        f"{count(result.answered, 'prompt')} of {result.asked} answered with all heads",
        f"{result.facts['length']:,} tokens",
        "dot: the detector's own heads taken out, with its 95 % interval; ring: random heads of the same layers",
    ]
    silent = [verdict.name for verdict in result.verdicts if verdict.mean is None]
    return [*facts, f"no answer, so no score: {', '.join(silent)}"] if silent else facts


def _draw_agreement(axes: Axes, result: RefereeResult) -> None:
    ranks, shared = result.agreement()
    names = [verdict.name for verdict in result.scored]
    size = len(names)
    axes.set(xlim=(0, size), ylim=(size, 0))
    for row in range(size):
        for column in range(size):
            value = shared[row, column] / result.top if column > row else ranks[row, column]
            if row == column:
                continue
            known = not np.isnan(value)
            colour = along(ON_PAPER if value >= 0 else BELOW_ZERO, abs(value)) if known else PAPER
            axes.fill([column, column + 1, column + 1, column], [row, row, row + 1, row + 1],
                      facecolor=hexadecimal(colour), edgecolor=hexadecimal(PAPER), linewidth=1.5)  # fmt: skip
            told = f"{shared[row, column]:.0f}" if column > row else f"{value:.2f}" if known else "-"
            axes.text(column + 0.5, row + 0.5, told, ha="center", va="center", fontsize=7.5,
                      color=hexadecimal(PAPER if is_dark(colour) else INK))  # fmt: skip
    axes.set_yticks([i + 0.5 for i in range(size)], names)
    axes.set_xticks([i + 0.5 for i in range(size)], names, rotation=45, ha="right", rotation_mode="anchor")
    head_line(axes, "agreement")


def _lines(axes: Axes, size: int, limit: float = 1.0) -> None:
    axes.set(xlim=(-0.03, limit + 0.03), ylim=(size, 0))
    axes.set_yticks([])
    for row in range(size):
        axes.axhline(row + 0.5, color=GRID, linewidth=1.0, zorder=0)


def _draw_areas(axes: Axes, scored: list[Verdict]) -> None:
    _lines(axes, len(scored))
    for row, verdict in enumerate(scored):
        if verdict.curve is None:
            continue
        area = verdict.curve.area
        own, other = area.mean or 0.0, verdict.curve.random_area.mean or 0.0
        axes.plot([own, other], [row + 0.5] * 2, color=hexadecimal(ON_PAPER[2]), linewidth=1.5, zorder=1)
        if area.low is not None and area.high is not None:
            axes.plot([area.low, area.high], [row + 0.5] * 2, color=hexadecimal(ON_PAPER[5]), linewidth=3.5, zorder=1.5,
                      alpha=0.35, solid_capstyle="butt")  # fmt: skip
        axes.plot([other], [row + 0.5], "o", markersize=6, markerfacecolor=hexadecimal(PAPER),
                  markeredgecolor=hexadecimal(QUIET), zorder=2)  # fmt: skip
        axes.plot([own], [row + 0.5], "o", markersize=6, color=hexadecimal(ON_PAPER[5]), zorder=3)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    head_line(axes, "area under the knockout curve")


def _draw_budgets(axes: Axes, result: RefereeResult) -> None:
    scored = result.scored
    budgets = sorted({budget for verdict in scored for budget in verdict.budgets or ()})
    _lines(axes, len(scored))
    for place, budget in enumerate(budgets):
        colour = hexadecimal(along(ON_PAPER[2:], (place + 1) / len(budgets)))
        for row, verdict in enumerate(scored):
            left = (verdict.budgets or {}).get(budget)
            if left is not None:
                axes.plot([left], [row + 0.5], "s", markersize=5.5, color=colour, zorder=2)
        for name, found in result.baselines.items():
            dash, fade = ":" if name == NOISE else "--", (place + 1) / len(budgets)
            axes.axvline(found[budget], linewidth=0.9, alpha=fade, linestyle=dash, color=hexadecimal(RING))
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    told = ", ".join(map(str, budgets))
    head_line(axes, f"answers left at {told} entries")
    axes.set_xlabel("orange: even (dashed), random (dotted)", fontsize=7.5, color=hexadecimal(QUIET))

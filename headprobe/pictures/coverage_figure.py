"""The picture of which probes the scores stand on."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from headprobe.pictures.colours import INK, ON_PAPER, PAPER, QUIET, RING, along, hexadecimal, is_dark
from headprobe.pictures.coverage import Coverage, CoverageCell, percent
from headprobe.pictures.sheet import Sheet, label_axes
from headprobe.pictures.subject import Subject


def coverage_figure(subject: Subject, found: Coverage) -> Figure:
    """The picture: a tile a length and depth, deeper the more trials passed; repeats have an orange corner."""
    rows, columns = len(found.lengths), len(found.depths)
    tile = min(7.0 / columns, 0.62)
    high = min(tile, 0.46)
    sheet = Sheet(subject.title, subject.subtitle, (found.told_repeats(), *subject.facts), high * rows + 0.62)
    axes = sheet.axes(0.15, 0.15, tile * columns, high * rows)
    for cell in found.cells:
        _draw_cell(axes, cell, found.depths.index(cell.depth), found.lengths.index(cell.length), tile)
    axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5))
    axes.set_xticks(range(columns), [percent(depth) for depth in found.depths])
    axes.set_yticks(range(rows), [f"{length:,}" for length in found.lengths])
    label_axes(axes, "depth of the needle, percent", "tokens")
    return sheet.page.figure


def _draw_cell(axes: Axes, cell: CoverageCell, x: int, y: int, tile: float) -> None:
    rate = cell.passed / cell.total
    fill = along(ON_PAPER[:6], rate)
    style: dict[str, Any] = {"edgecolor": hexadecimal(PAPER), "linewidth": 1.5}
    axes.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=hexadecimal(fill), **style))
    ink = PAPER if is_dark(fill) else (INK if cell.passed else QUIET)
    axes.text(x, y, f"{cell.passed}/{cell.total}", ha="center", va="center", fontsize=min(9.0, tile * 16),
              color=hexadecimal(ink))  # fmt: skip
    if cell.repeated:
        corner = [(x + 0.2, y - 0.46), (x + 0.46, y - 0.46), (x + 0.46, y - 0.14)]
        axes.fill(*zip(*corner, strict=True), color=hexadecimal(RING), linewidth=0)

"""Score files against each other: one dot per head, once by rank and once by score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import NullLocator

from headprobe.errors import OptionError
from headprobe.pictures.page import GRID, LEFT, RIGHT, Sheet, figure_bytes, head_line, house_style, label_axes
from headprobe.pictures.style import ON_PAPER, PAPER, QUIET, RING, format_of, hexadecimal, printable
from headprobe.scores.comparison import Comparison
from headprobe.scores.files import write_atomically
from headprobe.scores.head_scores import Floats
from headprobe.scores.ranks import midranks

SIDE = 3.5  # inches of a panel
GAP = 0.9
BETWEEN = 0.95  # from one pair's panels to the next
MOST_PAIRS = 10
NAMED = 6  # heads with their name written beside the dot
LONGEST_FACT = 110
TOP = 20  # dots of the best heads of either side are drawn large


@dataclass(frozen=True, eq=False)
class PictureOfPair:
    """A comparison with what the two files are called."""

    first: str
    second: str
    comparison: Comparison


def draw_comparison(pairs: Sequence[PictureOfPair], path: Path | str, overwrite: bool = False) -> Path:
    """Draw each pair as two panels, ranks (log) and scores, into `path`, a png, svg or pdf, and return it.

    Raises `OutputExistsError` for an existing picture unless `overwrite` is true, `OptionError` for another file
    type, no pair, or more than 10.
    """
    return write_atomically(path, figure_bytes(lambda: comparison_figure(pairs), format_of(path)), overwrite)


def comparison_figure(pairs: Sequence[PictureOfPair]) -> Figure:
    """The figure itself, for a notebook. Raises as `draw_comparison`."""
    if not 1 <= len(pairs) <= MOST_PAIRS:
        raise OptionError(f"{len(pairs)} pairs of files to draw, need 1 to {MOST_PAIRS}")
    with house_style():
        return _figure(pairs)


def _figure(pairs: Sequence[PictureOfPair]) -> Figure:
    height = len(pairs) * SIDE + (len(pairs) - 1) * BETWEEN + 0.3
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    notes = dict.fromkeys(note for pair in pairs for note in pair.comparison.notes)
    legend = f"one dot per head; dark: the {TOP} best of either file; orange: the heads that moved most"
    facts = [printable(text, LONGEST_FACT) for text in (*names, *notes)]
    sheet = Sheet("Agreement of head scores", legend, facts, height, width=LEFT + 2 * SIDE + GAP + RIGHT)
    for index, pair in enumerate(pairs):
        y = 0.1 + index * (SIDE + BETWEEN)
        _draw_ranks(sheet.axes(0, y, SIDE, SIDE), pair)
        _draw_scores(sheet.axes(SIDE + GAP, y, SIDE, SIDE), pair)
    return sheet.page.figure


def _draw_ranks(axes: Axes, pair: PictureOfPair) -> None:
    found = pair.comparison
    ranks = midranks(found.first.ravel()), midranks(found.second.ravel())
    most = found.first.size
    axes.set(xscale="log", yscale="log", xlim=(most * 1.25, 0.8), ylim=(most * 1.25, 0.8))
    ticks = [tick for tick in (1, 3, 10, 30, 100, 300, 1000, 3000, 10000) if tick <= most]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{tick}" for tick in ticks])
        axis.set_minor_locator(NullLocator())
    axes.plot([0.8, most * 1.25], [0.8, most * 1.25], color=GRID, linewidth=1.2, zorder=0)
    told = "" if found.spearman is None else f": Spearman {found.spearman:.3f}"
    if found.low is not None:
        told += f" ({found.low:.3f} to {found.high:.3f})"
    head_line(axes, f"rank{told}")
    _draw_dots(axes, found, *ranks)
    label_axes(axes, f"rank in {pair.first[:1]}", f"rank in {pair.second[:1]}")


def _draw_scores(axes: Axes, pair: PictureOfPair) -> None:
    found = pair.comparison
    best = found.overlaps[min(1, len(found.overlaps) - 1)] if found.overlaps else None
    head_line(axes, "score" + (f": top {best.k} share {best.shared:.3g}" if best else ""))
    for side, limit in ((found.first, axes.set_xlim), (found.second, axes.set_ylim)):
        low, high = min(float(side.min()), 0.0), max(float(side.max()), 0.0)
        reach = (high - low) or 1.0
        limit(low - 0.04 * reach, high + 0.08 * reach)
    _draw_dots(axes, found, found.first.ravel(), found.second.ravel())
    axes.locator_params(nbins=5)
    label_axes(axes, f"score in {pair.first[:1]}", f"score in {pair.second[:1]}")


def _draw_dots(axes: Axes, found: Comparison, x: Floats, y: Floats) -> None:
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    ranks = np.minimum(midranks(found.first.ravel()), midranks(found.second.ravel()))
    is_top = ranks <= TOP
    blue = hexadecimal(ON_PAPER[4])
    axes.scatter(x[~is_top], y[~is_top], s=5, color=hexadecimal(ON_PAPER[3]), alpha=0.45, linewidths=0)
    axes.scatter(x[is_top], y[is_top], s=20, color=blue, linewidths=0)
    width = found.first.shape[1]
    places = [move.layer * width + move.head for move in found.moved]
    axes.scatter(x[places], y[places], s=22, color=hexadecimal(RING), linewidths=0, zorder=3)
    named = [(f"{m.layer}-{m.head}", x[i], y[i]) for m, i in zip(found.moved, places, strict=True)][:NAMED]
    large = np.union1d(np.flatnonzero(is_top), np.array(places, dtype=int))
    _name(axes, named, np.column_stack([x[large], y[large]]).astype(np.float64))


def _name(axes: Axes, heads: Sequence[tuple[str, float, float]], dots: Floats) -> None:
    """Names beside dots, on the side where there is room; a name that would lie on another or on `dots` is left out."""
    to_axes = axes.transData + axes.transAxes.inverted()
    busy = to_axes.transform(dots)
    for name, x, y in heads:
        across, up = to_axes.transform((x, y))
        side = next((side for side in (1, -1) if _is_free(busy, across, up, side)), 0)
        if not side:
            continue
        busy = np.concatenate([busy, [[across + side * far, up] for far in (0.03, 0.06, 0.09, 0.12)]])
        axes.annotate(
            name, (x, y), xytext=(5 * side, 0), textcoords="offset points", ha="left" if side > 0 else "right",
            va="center", fontsize=7.5, color=hexadecimal(QUIET), zorder=4,
            path_effects=[withStroke(linewidth=2.0, foreground=hexadecimal(PAPER))],
        )  # fmt: skip


def _is_free(busy: Floats, across: float, up: float, side: int) -> bool:
    """Whether a name has room to the right (`side` 1) or left (-1) of a place, all in parts of the panel."""
    along, apart = side * (busy[:, 0] - across), np.abs(busy[:, 1] - up)
    inside = 0.0 < across + side * 0.13 < 1.0
    return inside and not ((along > 0.015) & (along < 0.125) & (apart < 0.03)).any()

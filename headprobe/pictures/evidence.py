"""What scores stand on, in pictures: the probes behind them, and how sure the ranking is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from headprobe.errors import OptionError
from headprobe.pictures.coverage import Coverage, CoverageCell, percent
from headprobe.pictures.page import GRID, Sheet, head_line, label_axes
from headprobe.pictures.style import INK, ON_PAPER, PAPER, QUIET, RING, along, count, hexadecimal, is_dark
from headprobe.pictures.subject import Subject, clustered
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.stability import HeadRank, rank_intervals

# The picture of which probes the scores stand on.


def coverage_figure(subject: Subject, found: Coverage) -> Figure:
    """The picture: one tile per length and depth, deeper the more trials passed; repeats have an orange corner."""
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


# How sure the ranking is: the best heads with the intervals of their scores and ranks.


@dataclass(frozen=True)
class RankedHeads:
    """The best heads, best first, and how many independent trials their intervals rest on."""

    heads: tuple[HeadRank, ...]
    num_clusters: int

    @classmethod
    def of(cls, scores: AnyScores, top: int) -> RankedHeads:
        """The `top` heads. Trials of one needle are drawn together; where a file names no needles, equal trials
        count once. Raises `OptionError` for a file without trials, or a `top` of 0.
        """
        trials = clustered(scores)
        if trials is None:
            raise OptionError(f"{scores.path.name} holds no trials: the certainty of its ranking is unknown")
        if top < 1:
            raise OptionError("top is 0, need at least 1 head to show its rank")
        return cls(rank_intervals(trials, top), trials.num_clusters)

    def lines(self) -> list[str]:
        """What a terminal shows."""
        rows = ["rank  head     score   95 % interval     rank interval"]
        for head in self.heads:
            name, score = f"{head.layer}-{head.head}", f"{head.score_low:.3f} to {head.score_high:.3f}"
            ranks = f"{head.rank_low:.4g} to {head.rank_high:.4g}"
            rows.append(f"{head.rank:4d}  {name:<7}  {head.score:.3f}   {score:<16}  {ranks}")
        return [*rows, "", self.told_trials()]

    def told_trials(self) -> str:
        """On what the intervals rest."""
        return f"95 % intervals from {count(self.num_clusters, 'independent group')} of trials"

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"independent_groups": self.num_clusters, "heads": [vars(head) for head in self.heads]}


def ranks_figure(subject: Subject, found: RankedHeads) -> Figure:
    """The picture: one row per head, best on top; its score at the left, its rank at the right, both with intervals."""
    heads = len(found.heads)
    height = min(max(0.235 * heads, 0.8), 9.0)
    sheet = Sheet(subject.title, subject.subtitle, (found.told_trials(), *subject.facts), body_height=height + 0.5)
    half = (sheet.measure - 0.45) / 2
    left, right = (sheet.axes(x, 0.2, half, height) for x in (0.1, half + 0.45))
    _draw(left, [(h.score_low, h.score, h.score_high) for h in found.heads], height / heads)
    _draw(right, [(h.rank_low, h.rank, h.rank_high) for h in found.heads], height / heads)
    left.set_yticks(range(heads), [f"{h.layer}-{h.head}" for h in found.heads], fontsize=_size(height / heads))
    right.set_yticks([])
    left.set_xlim(left=min(0.0, left.get_xlim()[0]))
    right.set_xlim(right.get_xlim()[0], right.get_xlim()[1])
    head_line(left, f"score of layer-{subject.head_name}")
    head_line(right, "rank")
    return sheet.page.figure


def _size(row: float) -> float:
    return min(8.5, row * 34)


def _draw(axes: Axes, intervals: list[tuple[float, float, float]], row: float) -> None:
    rows = range(len(intervals))
    lows, middles, highs = zip(*intervals, strict=True)
    axes.hlines(rows, lows, highs, color=hexadecimal(ON_PAPER[2]), linewidth=min(5.0, row * 22), capstyle="round")
    axes.plot(middles, rows, "o", color=hexadecimal(RING), markersize=min(4.5, row * 20))
    axes.set_ylim(len(intervals) - 0.4, -0.6)
    axes.grid(axis="x", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", labelcolor=hexadecimal(INK))
    axes.tick_params(axis="x", labelcolor=hexadecimal(QUIET))

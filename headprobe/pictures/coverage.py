"""Which probes the scores stand on: pass rates by length and depth, and trials that are there twice."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from headprobe.errors import OptionError
from headprobe.pictures.colours import INK, ON_PAPER, PAPER, QUIET, RING, along, hexadecimal, is_dark
from headprobe.pictures.sheet import Sheet, label_axes
from headprobe.pictures.subject import Subject
from headprobe.pictures.wording import count
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import HeadScores


@dataclass(frozen=True)
class CoverageCell:
    """Trials of one length and depth: `total`, how many `passed`, how many of these repeat an earlier one's scores."""

    length: int
    depth: float
    passed: int
    total: int
    repeated: int


@dataclass(frozen=True)
class Coverage:
    """All cells that were probed, by length and depth; `lengths` in tokens and `depths` in percent, rising."""

    cells: tuple[CoverageCell, ...]

    @classmethod
    def of(cls, scores: HeadScores) -> Coverage:
        """The grid of a native file. A passing trial repeats another when all its scores are the same, bit for bit."""
        seen: set[bytes] = set()
        cells: dict[tuple[int, float], list[tuple[bool, bool]]] = defaultdict(list)
        for trial in scores.trials:
            repeats = False
            if trial.passed and trial.scores is not None:
                key = trial.scores.tobytes()
                repeats = key in seen
                seen.add(key)
            cells[trial.length, trial.depth].append((trial.passed, repeats))
        return cls(tuple(
            CoverageCell(length, depth, sum(p for p, _ in rows), len(rows), sum(r for _, r in rows))
            for (length, depth), rows in sorted(cells.items())
        ))  # fmt: skip

    @property
    def lengths(self) -> list[int]:
        """Lengths in tokens, rising."""
        return sorted({cell.length for cell in self.cells})

    @property
    def depths(self) -> list[float]:
        """Depths in percent, rising."""
        return sorted({cell.depth for cell in self.cells})

    @property
    def repeated(self) -> int:
        """Passing trials whose scores an earlier one has already."""
        return sum(cell.repeated for cell in self.cells)

    def lines(self) -> list[str]:
        """What a terminal shows: passed/total, lengths down, depths across."""
        by_place = {(cell.length, cell.depth): f"{cell.passed}/{cell.total}" for cell in self.cells}
        width = max(len(text) for text in [*by_place.values(), *map(_percent, self.depths)])
        rows = ["tokens  " + "  ".join(_percent(depth).rjust(width) for depth in self.depths)]
        for length in self.lengths:
            cells = (by_place.get((length, depth), "").rjust(width) for depth in self.depths)
            rows.append(f"{length:6d}  " + "  ".join(cells).rstrip())
        return [*rows, "", self.told_repeats()]

    def told_repeats(self) -> str:
        """How many trials are there twice, in words."""
        if not self.repeated:
            return "no trial repeats another"
        verb = "repeats" if self.repeated == 1 else "repeat"
        return f"{count(self.repeated, 'trial')} {verb} the scores of another"

    def record(self) -> dict[str, Any]:
        """What `--json` prints."""
        return {"cells": [vars(cell) for cell in self.cells], "repeated_trials": self.repeated}


def _percent(depth: float) -> str:
    return f"{depth:.3g}"


def coverage_of(scores: AnyScores) -> Coverage:
    """The grid of a file. Raises `OptionError` where the file does not tell its trials' lengths and depths."""
    if scores.native is None:
        raise OptionError(f"{scores.path.name} does not tell which length and depth its trials had")
    return Coverage.of(scores.native)


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
    axes.set_xticks(range(columns), [_percent(depth) for depth in found.depths])
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

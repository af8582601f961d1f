"""Which probes the scores stand on: pass rates by length and depth, and trials that are there twice."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from headprobe.errors import OptionError
from headprobe.pictures.style import count
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
        width = max(len(text) for text in [*by_place.values(), *map(percent, self.depths)])
        rows = ["tokens  " + "  ".join(percent(depth).rjust(width) for depth in self.depths)]
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


def percent(depth: float) -> str:
    """A depth in percent, with three digits."""
    return f"{depth:.3g}"


def coverage_of(scores: AnyScores) -> Coverage:
    """The grid of a file. Raises `OptionError` where the file does not state its trials' lengths and depths."""
    if scores.native is None:
        raise OptionError(f"{scores.path.name} does not state which length and depth its trials had")
    return Coverage.of(scores.native)

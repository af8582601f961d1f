"""What the rows of a needle grid say: recall with intervals, differences on the same prompts, memory and time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Any

from headprobe.evaluation.summaries import FULL, CellKey, RowSummary, cell_record, key_of, mean_of, median_of
from headprobe.evaluation.trials import Row
from headprobe.evaluation.variants import RANDOM, REAL, SHUFFLED
from headprobe.scores.uncertainty import Estimate, estimate, paired_difference

METRICS = ("exact_match", "answer_f1")


@dataclass(frozen=True)
class Cell:
    """A policy at a budget over prompts of one length in tokens (None: of all lengths).

    Shares and F1 are in [0, 1]; `minus_*` are mean differences over the prompts that both have: to the full cache, and
    to the same policy on random and on shuffled scores. Bytes are means over the prompts, times medians in seconds.
    What was not measured is None, in an `Estimate` too. `num_errors` trials ran out of memory.
    """

    key: CellKey
    length: int | None
    num_prompts: int
    num_errors: int
    exact_match: Estimate
    answer_f1: Estimate
    chose_answer: Estimate
    chose_distractor: Estimate
    minus_full: dict[str, Estimate]
    minus_random: dict[str, Estimate] | None
    minus_shuffled: dict[str, Estimate] | None
    kv_entries: float | None
    kv_bytes_asked: float | None
    kv_bytes: float | None
    full_kv_bytes: float | None
    ttft_s: float | None
    s_per_token: float | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return cell_record(self)


@dataclass(frozen=True, eq=False)
class GridSummary(RowSummary):
    """Statistics over `rows`, as far as they are there."""

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Lengths in tokens, rising."""
        return tuple(sorted({row["length"] for row in self.rows}))

    @cached_property
    def depths(self) -> tuple[float, ...]:
        """Depths in percent, rising."""
        return tuple(sorted({row["depth"] for row in self.rows}))

    @cached_property
    def _by_key(self) -> dict[CellKey, list[Row]]:
        found: dict[CellKey, list[Row]] = {key: [] for key in self.keys}
        for row in self.rows:
            found[key_of(row)].append(row)
        return found

    @cached_property
    def cells(self) -> tuple[Cell, ...]:
        """Every policy and budget, over all lengths."""
        return tuple(self.cell(key) for key in self.keys)

    @cached_property
    def cells_by_length(self) -> tuple[Cell, ...]:
        """Every policy and budget, a length at a time."""
        return tuple(self.cell(key, length) for length in self.lengths for key in self.keys)

    def cell(self, key: CellKey, length: int | None = None) -> Cell:
        """One policy at one budget, over all prompts or those of one length."""
        rows = self._rows(key, length)
        good = [row for row in rows if row["error"] is None]
        needles = [row["needle"] for row in good]
        return Cell(
            key=key,
            length=length,
            num_prompts=len(good),
            num_errors=len(rows) - len(good),
            exact_match=estimate([float(row["exact_match"]) for row in good], needles),
            answer_f1=estimate([row["answer_f1"] for row in good], needles),
            chose_answer=estimate([float(row["chose"] == "answer") for row in good], needles),
            chose_distractor=estimate([float(row["chose"] == "distractor") for row in good], needles),
            minus_full=self._difference(good, self._full(length)),
            minus_random=self._minus(key, RANDOM, good, length),
            minus_shuffled=self._minus(key, SHUFFLED, good, length),
            kv_entries=mean_of(good, "kv_entries"),
            kv_bytes_asked=mean_of(good, "kv_bytes_asked"),
            kv_bytes=mean_of(good, "kv_bytes"),
            full_kv_bytes=mean_of(good, "full_kv_bytes"),
            ttft_s=median_of(good, "ttft_s"),
            s_per_token=median_of(good, "s_per_token"),
        )

    def place(self, key: CellKey, length: int, depth: float, metric: str = "exact_match") -> float | None:
        """The mean of `metric` at one length and depth; None where no trial was measured."""
        rows = [row for row in self._rows(key, length) if row["depth"] == depth and row["error"] is None]
        return fmean(float(row[metric]) for row in rows) if rows else None

    def record(self) -> dict[str, Any]:
        """As JSON: cells over all lengths, by length, and by length and depth."""
        return {
            "num_prompts": self.num_prompts,
            "num_rows": len(self.rows),
            "lengths": list(self.lengths),
            "depths": list(self.depths),
            "budgets": list(self.budgets),
            "cells": [cell.record() for cell in self.cells],
            "cells_by_length": [cell.record() for cell in self.cells_by_length],
            "grid": [
                {**key.record(), "length": length, "depth": depth}
                | {metric: self.place(key, length, depth, metric) for metric in METRICS}
                for key in self.keys for length in self.lengths for depth in self.depths
            ],
        }  # fmt: skip

    def _rows(self, key: CellKey, length: int | None) -> list[Row]:
        return [row for row in self._by_key.get(key, []) if length is None or row["length"] == length]

    def _full(self, length: int | None) -> list[Row]:
        rows = self._rows(FULL, length)
        return [row for row in rows if row["error"] is None]

    def _minus(self, key: CellKey, source: str, good: list[Row], length: int | None) -> dict[str, Estimate] | None:
        """The difference to a baseline; None for what has none."""
        other = replace(key, scores=source)
        if key.scores != REAL or other not in self._by_key:
            return None
        return self._difference(good, [row for row in self._rows(other, length) if row["error"] is None])

    def _difference(self, rows: Sequence[Row], others: Sequence[Row]) -> dict[str, Estimate]:
        needles = {row["prompt"]: row["needle"] for row in rows}
        return {
            metric: paired_difference(
                {row["prompt"]: float(row[metric]) for row in rows},
                {row["prompt"]: float(row[metric]) for row in others},
                needles,
            )
            for metric in METRICS
        }

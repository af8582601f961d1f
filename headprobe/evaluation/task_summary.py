"""What the rows of tasks say: scores with intervals, paired differences to the full cache, memory and time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from statistics import fmean, median
from typing import Any

from headprobe.evaluation.needle_summary import CellKey, key_of
from headprobe.evaluation.task_trial import Row
from headprobe.scores.uncertainty import Estimate, estimate, paired_difference

FULL = CellKey("full", None, None)


@dataclass(frozen=True)
class TaskCell:
    """A policy at a budget over the prompts of one set (None: the mean over all sets, each with equal weight).

    `score` is in [0, 1]; `minus_full` the mean difference on the prompts that both have. `num_errors` trials ran out
    of memory; of `num_prompts` as many as `num_unevicted` fit into the budget. Bytes and entries are means over the
    prompts, times medians in seconds: `seconds` is the whole trial, reading included.
    """

    key: CellKey
    set: str | None
    num_prompts: int
    num_errors: int
    num_unevicted: int
    score: Estimate
    minus_full: Estimate
    kv_entries: float | None
    full_kv_entries: float | None
    kv_bytes: float | None
    full_kv_bytes: float | None
    ttft_s: float | None
    s_per_token: float | None
    seconds: float | None

    def record(self) -> dict[str, Any]:
        """As JSON."""
        plain: dict[str, Any] = {**vars(self.key)}
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            plain[field.name] = value.record() if isinstance(value, Estimate) else value
        return plain


@dataclass(frozen=True, eq=False)
class TaskSummary:
    """Statistics over `rows`, as far as they are there."""

    rows: tuple[Row, ...]

    @cached_property
    def keys(self) -> tuple[CellKey, ...]:
        """Policies and budgets in the order in which the rows have them."""
        return tuple(dict.fromkeys(key_of(row) for row in self.rows))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the variants, each once."""
        return tuple(dict.fromkeys(key.name for key in self.keys))

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """Names of the sets, each once."""
        return tuple(dict.fromkeys(row["set"] for row in self.rows))

    @cached_property
    def budgets(self) -> tuple[int, ...]:
        """Budgets, rising."""
        return tuple(sorted({row["budget"] for row in self.rows if row["budget"] is not None}))

    @cached_property
    def num_prompts(self) -> int:
        """Prompts that have at least one row."""
        return len({row["prompt"] for row in self.rows})

    @cached_property
    def cells(self) -> tuple[TaskCell, ...]:
        """Every policy and budget, over all sets."""
        return tuple(self.cell(key) for key in self.keys)

    @cached_property
    def cells_by_set(self) -> tuple[TaskCell, ...]:
        """Every policy and budget, a set at a time."""
        return tuple(self.cell(key, name) for name in self.sets for key in self.keys)

    def cell(self, key: CellKey, name: str | None = None) -> TaskCell:
        """One policy at one budget, over the prompts of a set or of all sets."""
        rows = self._rows(key, name)
        good = [row for row in rows if row["error"] is None]
        weights = _weights(good)
        return TaskCell(
            key=key,
            set=name,
            num_prompts=len(good),
            num_errors=len(rows) - len(good),
            num_unevicted=sum(not row["evicts"] for row in good) if key.budget is not None else 0,
            score=estimate([weights[row["set"]] * row["score"] for row in good], [row["cluster"] for row in good]),
            minus_full=_difference(good, [row for row in self._rows(FULL, name) if row["error"] is None]),
            kv_entries=_mean(good, "kv_entries"),
            full_kv_entries=_mean(good, "full_kv_entries"),
            kv_bytes=_mean(good, "kv_bytes"),
            full_kv_bytes=_mean(good, "full_kv_bytes"),
            ttft_s=_median(good, "ttft_s"),
            s_per_token=_median(good, "s_per_token"),
            seconds=_median(good, "seconds"),
        )

    def record(self) -> dict[str, Any]:
        """As JSON: cells over all sets, and by set."""
        return {
            "num_prompts": self.num_prompts,
            "num_rows": len(self.rows),
            "num_cut": len({row["prompt"] for row in self.rows if row["cut_tokens"]}),
            "sets": list(self.sets),
            "budgets": list(self.budgets),
            "cells": [cell.record() for cell in self.cells],
            "cells_by_set": [cell.record() for cell in self.cells_by_set],
        }

    @cached_property
    def _by_key(self) -> dict[tuple[CellKey, str], list[Row]]:
        found: dict[tuple[CellKey, str], list[Row]] = {}
        for row in self.rows:
            found.setdefault((key_of(row), row["set"]), []).append(row)
        return found

    def _rows(self, key: CellKey, name: str | None) -> list[Row]:
        names = self.sets if name is None else (name,)
        return [row for each in names for row in self._by_key.get((key, each), ())]


def _weights(rows: Sequence[Row]) -> dict[str, float]:
    """What a row of each set counts so that the mean over all rows is the mean of the sets' means.

    >>> _weights([{"set": "a"}, {"set": "b"}, {"set": "b"}, {"set": "b"}])
    {'a': 2.0, 'b': 0.6666666666666666}
    """
    sizes = Counter(row["set"] for row in rows)
    return {name: len(rows) / (len(sizes) * size) for name, size in sizes.items()}


def _difference(rows: Sequence[Row], others: Sequence[Row]) -> Estimate:
    """The mean of `rows - others` over the prompts that both have, sets weighted alike."""
    known = {row["prompt"]: row["score"] for row in others}
    shared = [row for row in rows if row["prompt"] in known]
    weights = _weights(shared)
    return paired_difference(
        {row["prompt"]: weights[row["set"]] * row["score"] for row in shared},
        {row["prompt"]: weights[row["set"]] * known[row["prompt"]] for row in shared},
        {row["prompt"]: row["cluster"] for row in shared},
    )


def _mean(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return fmean(values) if values else None


def _median(rows: Sequence[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return median(values) if values else None

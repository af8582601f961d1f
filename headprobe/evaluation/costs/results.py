"""All runs of a bench, in turns, and what their rows come to: medians, and ratios to the full cache."""

from __future__ import annotations

import datetime
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headprobe.compression.policies import CompressionPlan
from headprobe.errors import DeviceMemoryError, ModelError, NonFiniteError, OptionError
from headprobe.evaluation.costs.bench import FULL, STOCK, UNMEASURED, Bench, Cell, Row
from headprobe.evaluation.costs.shapes import uneven_scores
from headprobe.evaluation.trials import emit_row
from headprobe.events import PLAN, emit
from headprobe.profiling.journal import Journal
from headprobe.profiling.record_check import is_number, number, text, whole
from headprobe.stages import stage_record

SCHEMA = "headprobe-bench/1"
UNMEASURABLE = (DeviceMemoryError, NonFiniteError, OptionError, ModelError)  # of one cell; the others go on
WARM_TOKENS = {"cuda": 16, "cpu": 2}  # behind the first: enough for a step to be captured
LARGE_TABLE = (80, 64)  # layers and heads of the table whose budgets are timed beside the model's own


def run_bench(bench: Bench, journal: Journal, on_sample: Callable[[Cell, Row], None] | None = None) -> list[Row]:
    """Measure what `journal` does not hold, and give all rows, in the order of cells and repeats.

    Of each length and batch every cell runs once unmeasured; then come the repeats, in which the cells take turns,
    every other time in reverse, so that a machine that grows slower or faster favours none. A cell that does not fit
    into memory, or that the model or a kernel can't do, is a row of nulls with the reason. Rows with an error are
    measured again when a run is resumed.
    """
    old = {trial for trial, row in journal.records.items() if row["error"] is None}
    wanted = [cell.head(repeat)["trial"] for cell in bench.cells() for repeat in range(bench.options.repeats)]
    done = len(old.intersection(wanted))
    emit(PLAN, work="bench", model=bench.subject.name, trials=len(wanted), done=done)
    for group in bench.groups():
        left = [(cell, repeat) for repeat, cell in _turns(group, bench.options.repeats)]
        left = [(cell, repeat) for cell, repeat in left if cell.head(repeat)["trial"] not in old]
        failed = _warmed_up(bench, list(dict.fromkeys(cell for cell, _ in left)))
        for cell, repeat in left:
            if cell not in failed:
                try:
                    row = cell.head(repeat) | bench.measure(cell).record()
                except UNMEASURABLE as error:
                    failed[cell] = str(error)
            if cell in failed:
                row = cell.head(repeat) | UNMEASURED | {"error": failed[cell]}
            journal.add(row)
            emit_row(row, cell.length)
            if on_sample is not None:
                on_sample(cell, row)
    return [journal.records[trial] for trial in wanted if trial in journal.records]


def _turns(group: tuple[Cell, ...], repeats: int) -> Iterator[tuple[int, Cell]]:
    """Repeats and cells, in the order in which they run.

    >>> a, b = (Cell(name, None, 8, 1, None, (1,)) for name in "ab")
    >>> [(repeat, cell.policy) for repeat, cell in _turns((a, b), 3)]
    [(0, 'a'), (0, 'b'), (1, 'b'), (1, 'a'), (2, 'a'), (2, 'b')]
    """
    for repeat in range(repeats):
        for cell in group if repeat % 2 == 0 else reversed(group):
            yield repeat, cell


def _warmed_up(bench: Bench, cells: list[Cell]) -> dict[Cell, str]:
    """Run each cell once; those that can't, with the reason."""
    failed = {}
    more = WARM_TOKENS.get(bench.subject.model.device.type, 2)
    for cell in cells:
        try:
            bench.measure(cell, (1, min(1 + more, cell.new_tokens[-1])))
        except UNMEASURABLE as error:
            failed[cell] = str(error)
    return failed


BUDGET_REPEATS = 5


def budget_seconds(bench: Bench) -> list[dict[str, Any]]:
    """How long each policy's capacities take to compute, for the longest prompt: of the model, and of 80 x 64 heads."""
    length, groups = max(bench.options.lengths), bench.subject.geometry.num_key_value_heads
    found = []
    for contender in bench.subject.contenders:
        if contender.policy.keeps_all:
            continue
        for budget in bench.options.budgets:
            own = (bench.subject.compressed_layers, groups, contender.table)
            large = (*LARGE_TABLE, uneven_scores(*LARGE_TABLE) if contender.policy.needs_scores else None)
            times = []
            for layers, heads, table in (own, large):
                one = []
                for _ in range(BUDGET_REPEATS):
                    began = bench.clock()
                    CompressionPlan(contender.policy, layers, heads, budget, head_scores=table).capacities(length)
                    one.append(bench.clock() - began)
                times.append(statistics.median(one))
            found.append({
                "policy": contender.policy.name, "budget": budget, "length": length, "model_s": times[0],
                "large_table": list(LARGE_TABLE), "large_table_s": times[1],
            })  # fmt: skip
    return found


class BenchRowCheck:
    """Whether a row, read back from a journal, is what a run of this bench writes."""

    def __init__(self, bench: Bench) -> None:
        rows = [cell.head(repeat) for cell in bench.cells() for repeat in range(bench.options.repeats)]
        self._heads = {row["trial"]: row for row in rows}

    def __call__(self, row: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a row that is wrong."""
        head = self._heads.get(row["trial"])
        if head is None:
            raise ValueError("the bench has no such run")
        for name, due in head.items():
            if row.get(name) != due:
                raise ValueError(f"its {name} is {row.get(name)!r:.60}, the bench has {due!r:.60}")
        if set(row) != {*head, *UNMEASURED, "error"}:
            raise ValueError("its fields are not those of a run")
        if row["error"] is not None:
            if not isinstance(row["error"], str) or any(row[name] is not None for name in UNMEASURED):
                raise ValueError("a run with an error has measured nothing")
            return
        _check_measured(row)


def _check_measured(row: Mapping[str, Any]) -> None:
    number(row, "prefill_s")
    text(row, "kernel")
    for name in ("kv_bytes", "kept_bytes", *(() if row["peak_bytes"] is None else ("peak_bytes",))):
        whole(row, name, 0)
    if row["graph_refusal"] is not None:
        text(row, "graph_refusal")
    times = row["latency_s"]
    if not isinstance(times, list) or len(times) != len(row["new_tokens"]) or not all(is_number(t, 0) for t in times):
        raise ValueError(f"its latency_s are {times!r:.60}, need a time for each of {row['new_tokens']}")


# -- what the rows come to --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Speed:
    """What bounds a decode step: bytes of weights that it reads, and copy bandwidth in bytes/s (None: unknown)."""

    weights_read: int
    bandwidth: float | None

    def floor_s(self, kept_bytes: float) -> float | None:
        """The least seconds of a step that reads the weights and N bytes of keys and values.

        >>> Speed(700, 100.0).floor_s(300), Speed(700, None).floor_s(300)
        (10.0, None)
        """
        return None if self.bandwidth is None else (self.weights_read + kept_bytes) / self.bandwidth


def summarize(cells: Sequence[Cell], rows: Sequence[Row], speed: Speed) -> list[dict[str, Any]]:
    """One object per cell: medians over its repeats, and ratios to the full cache on the same kernel.

    What was not measured is None; `error` says why.
    """
    by_cell = [[row for row in rows if _is_of(row, cell)] for cell in cells]
    found = [_medians(cell, own) for cell, own in zip(cells, by_cell, strict=True)]
    prefills = {id(cell): {r["repeat"]: r["prefill_s"] for r in own} for cell, own in zip(found, by_cell, strict=True)}
    for cell in found:
        peers = [other for other in found if (other["length"], other["batch"]) == (cell["length"], cell["batch"])]
        full = next((o for o in peers if o["policy"] == FULL and o["kernel"] == cell["kernel"]), None)
        stock = next((o for o in peers if o["policy"] == STOCK), None)
        cell["over_full"] = None if cell["policy"] in (FULL, STOCK) else _ratios(cell, full)
        cell["over_transformers"] = None if cell["policy"] == STOCK else _ratios(cell, stock)
        added = [] if cell["over_full"] is None or full is None else _added(prefills[id(cell)], prefills[id(full)])
        cell["compression_s"] = _median(added)
        cell["compression_range_s"] = [min(added), max(added)] if added else None
        floor = None if cell["kept_bytes"] is None else speed.floor_s(cell["kept_bytes"])
        step = cell["s_per_token"][-1] if cell["s_per_token"] else None
        cell["floor_s"] = floor
        cell["over_floor"] = None if floor is None or step is None else step / floor
    return found


def _added(prefills: Mapping[int, float | None], full: Mapping[int, float | None]) -> list[float]:
    """What each repeat's prefill took longer than the full cache's in the same repeat.

    >>> _added({0: 5.0, 1: 7.0, 2: None}, {0: 4.0, 1: 5.0, 2: 1.0})
    [1.0, 2.0]
    """
    both = [(own, full.get(repeat)) for repeat, own in prefills.items()]
    return [own - base for own, base in both if own is not None and base is not None]


def _is_of(row: Row, cell: Cell) -> bool:
    return bool(row["trial"] == cell.head(row["repeat"])["trial"])


def _medians(cell: Cell, rows: Sequence[Row]) -> dict[str, Any]:
    good = [row for row in rows if row["error"] is None]
    errors = [row["error"] for row in rows if row["error"] is not None]
    latencies = [row["latency_s"] for row in good]
    steps = [per_token(row["prefill_s"], row["latency_s"], cell.new_tokens) for row in good]
    return {
        "policy": cell.policy, "budget": cell.budget, "length": cell.length, "batch": cell.batch,
        "kernel": good[0]["kernel"] if good else None, "repeats": len(good),
        "keeps_all": cell.budget is not None and cell.budget >= cell.length,
        "prefill_s": _median([row["prefill_s"] for row in good]),
        "prefill_range_s": [min(r["prefill_s"] for r in good), max(r["prefill_s"] for r in good)] if good else None,
        "new_tokens": list(cell.new_tokens),
        "latency_s": [_median(column) for column in zip(*latencies, strict=True)] if good else None,
        "s_per_token": [_median(column) for column in zip(*steps, strict=True)] if good else None,
        "peak_bytes": _median([row["peak_bytes"] for row in good]),
        "kv_bytes": _median([row["kv_bytes"] for row in good]),
        "kept_bytes": _median([row["kept_bytes"] for row in good]),
        "graph_refusal": good[0]["graph_refusal"] if good else None,
        "error": errors[0] if errors else None,
    }  # fmt: skip


def per_token(prefill_s: float, latency_s: Sequence[float], new_tokens: Sequence[int]) -> list[float | None]:
    """Seconds per token between one answer's length and the next; None where no token lies between.

    >>> per_token(2.0, [2.0, 5.0, 13.0], [1, 4, 8])
    [None, 1.0, 2.0]
    """
    ends = zip((1, *new_tokens), (prefill_s, *latency_s), new_tokens, latency_s, strict=False)
    return [None if count == done else (end - began) / (count - done) for done, began, count, end in ends]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _ratios(cell: Mapping[str, Any], other: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of each measurement that of `cell` over that of `other`."""
    found: dict[str, Any] = {}
    for name in ("prefill_s", "peak_bytes", "kv_bytes"):
        found[name] = _ratio(cell[name], None if other is None else other[name])
    for name in ("latency_s", "s_per_token"):
        own, base = cell[name], None if other is None else other[name]
        found[name] = None if own is None or base is None else [_ratio(a, b) for a, b in zip(own, base, strict=True)]
    return found


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def bench_record(
    bench: Bench, rows: Sequence[Row], budgets: Sequence[Mapping[str, Any]], speed: Speed
) -> dict[str, Any]:
    """The whole bench as one JSON object."""
    planned = len(bench.cells()) * bench.options.repeats
    device = bench.subject.model.device
    return {
        "schema": SCHEMA,
        **bench.describe(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device_type": device.type,
        "random_weights": bench.subject.is_random,
        "stages": stage_record(),
        "weights_bytes": bench.subject.weights_bytes,
        "copy_bandwidth": speed.bandwidth,
        "planned_runs": planned,
        "runs": len(rows),
        "is_complete": len(rows) == planned,
        "remarks": bench.remarks(),
        "cells": summarize(bench.cells(), rows, speed),
        "budget_seconds": list(budgets),
    }

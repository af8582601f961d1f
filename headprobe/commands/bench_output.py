"""What `headprobe bench` prints and writes: progress, tables, the JSON and the picture."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from headprobe.commands.output import print_table, stdout_console, tell, write_json
from headprobe.commands.picture_output import PictureFile, figures
from headprobe.evaluation.costs.bench import Bench, Cell, Row
from headprobe.pictures.style import told_bytes
from headprobe.profiling.journal import Journal
from headprobe.scores.files import write_atomically

RUNS, RESULT, TABLE, PICTURE = "runs.jsonl", "bench.json", "table.md", "bench.png"
DERIVED = (RESULT, TABLE, PICTURE)
COLUMNS = (
    "policy", "budget", "length", "batch", "kernel", "prefill", "spread", "x full", "compression", "answer", "in all",
    "x full", "per token", "x full", "x floor", "peak", "x full", "KV", "x full",
)  # fmt: skip
BUDGET_COLUMNS = ("policy", "budget", "this model's heads", "80 x 64 heads")
LEGEND = (
    "prefill: until the first token is known; spread: the slowest repeat's over the fastest's; compression: what the "
    "prefill takes longer than the full cache's of the same repeat, with ? where repeats differ in its sign or there "
    "is only one; in all: prefill and an answer of N tokens; per token: of its last part; x full: over the full "
    "cache on the same kernel; x floor: over the time in which weights and kept entries can be copied; peak: memory "
    "beyond the weights; KV: keys and values held behind the prompt, room for new ones included"
)


class BenchProgress:
    """Runs done, a line on stderr whenever a length and batch is through."""

    def __init__(self, bench: Bench, journal: Journal) -> None:
        self._left: dict[tuple[int, int], int] = {}
        self._total = self._done = 0
        for cell in bench.cells():
            for repeat in range(bench.options.repeats):
                row = journal.records.get(cell.head(repeat)["trial"])
                self._total += 1
                if row is not None and row["error"] is None:
                    self._done += 1
                else:
                    self._left[cell.length, cell.batch] = self._left.get((cell.length, cell.batch), 0) + 1
        self._began = time.monotonic()

    def update(self, cell: Cell, row: Row) -> None:
        """Count a run."""
        self._done += 1
        self._left[cell.length, cell.batch] -= 1
        if row["error"] is not None and row["repeat"] == 0:
            tell(f"note: {cell.id}: {row['error']}")
        if not self._left[cell.length, cell.batch]:
            seconds = time.monotonic() - self._began
            tell(f"{self._done:,} of {self._total:,} runs, {seconds:.0f} s so far: {cell.batch} x {cell.length:,} done")

    def __enter__(self) -> BenchProgress:
        tell(f"{self._total:,} runs, {self._done:,} of them done")
        return self

    def __exit__(self, *error: object) -> None:
        sys.stderr.flush()


def write_bench(folder: Path, record: Mapping[str, Any]) -> None:
    """JSON, table and picture; what lies there from an earlier part of the run is replaced."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder / RESULT, text.encode(), overwrite=True)
    write_atomically(folder / TABLE, markdown(record).encode(), overwrite=True)
    if any(cell["prefill_s"] is not None for cell in record["cells"]):
        PictureFile(folder / PICTURE, "png", overwrite=True).write(lambda: figures().bench_figure(record))


def print_bench(folder: Path, record: Mapping[str, Any], as_json: bool) -> None:
    """The tables, or with `as_json` the record."""
    if as_json:
        write_json({"path": str(folder), **record})
        return
    console = stdout_console()
    console.print(f"{heading(record)}\n", soft_wrap=True, markup=False)
    columns, rows = table(record)
    print_table(columns, rows, right=[name for name in columns if name not in ("policy", "kernel")])
    reasons = failures(record)
    if reasons:
        console.print("\n" + "\n".join(reasons), soft_wrap=True, markup=False)
    if record["budget_seconds"]:
        console.print("\nseconds to compute budgets\n", soft_wrap=True, markup=False)
        print_table(BUDGET_COLUMNS, budget_rows(record), right=BUDGET_COLUMNS[1:])
    console.print(f"\n{LEGEND}\n\nwritten to {folder}/", soft_wrap=True, markup=False)


def heading(record: Mapping[str, Any]) -> str:
    """What was measured, and on what, in one line."""
    where, kind = record["environment"], str(record["dtype"]).removeprefix("torch.")
    weights = "random weights, " if record["random_weights"] else ""
    threads = where["threads"]
    return (
        f"{record['model']}, {weights}{kind} on {where['device']}, {threads} thread{'s' if threads != 1 else ''}; "
        f"median of {record['repeats']} run{'s' if record['repeats'] != 1 else ''}; headprobe {where['headprobe']}, "
        f"torch {where['torch']}, transformers {where['transformers']}"
    )


def table(record: Mapping[str, Any]) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    """Columns and rows, one per cell; without the floor where it is unknown, and the batch where it is 1."""
    rows = [cell_row(cell) for cell in record["cells"]]
    hidden = set()
    if all(cell["over_floor"] is None for cell in record["cells"]):
        hidden.add("x floor")
    if record["batches"] == [1]:
        hidden.add("batch")
    shown = [index for index, name in enumerate(COLUMNS) if name not in hidden]
    return tuple(COLUMNS[index] for index in shown), [tuple(row[index] for index in shown) for row in rows]


def cell_row(cell: Mapping[str, Any]) -> tuple[str | None, ...]:
    """A cell; what was not measured stays empty."""
    over = cell["over_full"] or {}
    return (
        cell["policy"],
        None if cell["budget"] is None else f"{cell['budget']:,}",
        f"{cell['length']:,}",
        f"{cell['batch']:,}",
        cell["kernel"],
        seconds(cell["prefill_s"]),
        None if cell["repeats"] < 2 else spread(cell["prefill_range_s"]),
        times(over.get("prefill_s")),
        unsure(cell["compression_s"], cell["compression_range_s"]),
        f"{cell['new_tokens'][-1]:,}",
        seconds(_last(cell["latency_s"])),
        times(_last(over.get("latency_s"))),
        seconds(_last(cell["s_per_token"])),
        times(_last(over.get("s_per_token"))),
        times(cell["over_floor"]),
        None if cell["peak_bytes"] is None else told_bytes(round(cell["peak_bytes"])),
        times(over.get("peak_bytes")),
        None if cell["kv_bytes"] is None else told_bytes(round(cell["kv_bytes"])),
        times(over.get("kv_bytes")),
    )


def failures(record: Mapping[str, Any]) -> list[str]:
    """Why cells were not measured, or not in all repeats: a line each."""
    return [
        f"{cell['policy']}{'' if cell['budget'] is None else ' ' + str(cell['budget'])}, {cell['batch']} x "
        f"{cell['length']:,} tokens: {cell['repeats']} of {record['repeats']} runs measured; {cell['error']}"
        for cell in record["cells"]
        if cell["error"] is not None
    ]


def budget_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How long budgets take to compute."""
    return [
        (row["policy"], f"{row['budget']:,}", seconds(row["model_s"]) or "", seconds(row["large_table_s"]) or "")
        for row in record["budget_seconds"]
    ]


def _last(values: Sequence[float | None] | None) -> float | None:
    return values[-1] if values else None


def seconds(value: float | None, *, signed: bool = False) -> str | None:
    """A time in s, ms or µs.

    >>> seconds(2.345), seconds(0.0123), seconds(-0.0005, signed=True), seconds(0.00002)
    ('2.35 s', '12.3 ms', '-0.5 ms', '20 µs')
    """
    if value is None:
        return None
    sign = "+" if signed else ""
    if abs(value) >= 1:
        return f"{value:{sign}.2f} s" if abs(value) < 100 else f"{value:{sign}.0f} s"
    return f"{1e3 * value:{sign}.3g} ms" if abs(value) >= 1e-4 else f"{1e6 * value:{sign}.3g} µs"


def spread(ends: Sequence[float] | None) -> str | None:
    """The slowest over the fastest of several runs: near 1 on a quiet machine."""
    return None if ends is None or not ends[0] else times(ends[1] / ends[0])


def unsure(added: float | None, ends: Sequence[float] | None) -> str | None:
    """A difference, with a `?` where some repeats found it above 0 and others below, or there is only one.

    >>> unsure(0.25, [0.125, 0.5]), unsure(0.25, [-0.125, 0.5]), unsure(0.25, [0.25, 0.25])
    ('+250 ms', '+250 ms?', '+250 ms?')
    """
    told = seconds(added, signed=True)
    if told is None or ends is None:
        return told
    return told if ends[0] < ends[1] and (ends[0] > 0 or ends[1] < 0) else f"{told}?"


def times(ratio: float | None) -> str | None:
    """A ratio."""
    return None if ratio is None else f"{ratio:.2f}" if ratio >= 0.095 else f"{ratio:.2g}"


def markdown(record: Mapping[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"{heading(record)}.", _markdown(*table(record)), *failures(record)]
    if record["budget_seconds"]:
        parts += ["Seconds to compute budgets:", _markdown(BUDGET_COLUMNS, budget_rows(record))]
    parts += [*record["remarks"], f"{LEGEND}."]
    return "\n\n".join(parts) + "\n"


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)

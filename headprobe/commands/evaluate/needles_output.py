"""What `headprobe eval needles` prints and writes: plan, progress with the time left, tables, pictures."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from headprobe.commands.output import plan_value, print_table, stdout_console, tell, time_left, told_seconds, write_json
from headprobe.commands.picture_output import PictureFile, figures
from headprobe.commands.score_output import depths_reached
from headprobe.evaluation.memory import MEMORY_NOTES, reading_plan
from headprobe.evaluation.needle_folder import CURVE, GRID, SUMMARY, TABLE, GridFolder, summary_record
from headprobe.evaluation.needle_grid import NeedleGrid
from headprobe.evaluation.needle_summary import Cell, GridSummary
from headprobe.evaluation.needle_trial import GridTrial
from headprobe.evaluation.summaries import FULL, EvaluationFrame
from headprobe.evaluation.task_grid import TaskGrid
from headprobe.evaluation.task_trial import TaskTrial
from headprobe.evaluation.trials import Row
from headprobe.models.loading import LoadedModel
from headprobe.pictures.style import told_bytes
from headprobe.scores.files import write_atomically
from headprobe.scores.uncertainty import Estimate

COLUMNS = (
    "policy", "budget", "prompts", "exact", "95 %", "minus full", "95 %", "F1", "distractor", "KV asked", "KV held",
    "first token", "per token",
)  # fmt: skip
PIVOTS = {"exact_match": "exact, %", "answer_f1": "F1, %"}
PLANNED = {
    "depths_reached": "where the needles are, on average",
    "prompts": "one needle at one depth and one length",
    "trials_per_prompt": "`full` once, every other policy and baseline at every budget",
    "trials": "rows in total",
    "tokens": "in all prompts of all trials",
    **MEMORY_NOTES,
}


def print_plan(loaded: LoadedModel, grid: NeedleGrid, as_json: bool) -> None:
    """How much there is to do."""
    plan: dict[str, Any] = {
        "model": loaded.name,
        "policies": [variant.name for variant in grid.variants],
        "budgets": list(grid.budgets),
        "lengths": list(grid.prepared.plan.lengths),
        "depths": list(grid.prepared.plan.depths),
        "depths_reached": depths_reached(grid.prepared),
        "query_agnostic": grid.options.query_agnostic,
        "prompts": len(grid.prompts),
        "trials_per_prompt": grid.trials_per_prompt,
        "trials": grid.num_trials,
        "tokens": grid.trials_per_prompt * sum(len(prompt.input_ids) for _, prompt in grid.prompts),
        **reading_plan(loaded, max(len(prompt.input_ids) for _, prompt in grid.prompts), grid.options.prefill_chunk),
    }
    if as_json:
        write_json(plan)
        return
    rows = [(name, plan_value(value), PLANNED.get(name, "")) for name, value in plan.items()]
    print_table(("", "plan", ""), rows)


def tell_remarks(grid: NeedleGrid | TaskGrid) -> None:
    """What is not quite right with the scores, once each, on stderr."""
    for remark in dict.fromkeys(variant.remark for variant in grid.variants if variant.remark):
        tell(f"note: {remark}")


class GridProgress:
    """Trials done and time left on stderr: a bar on a terminal, else a line whenever a prompt is through.

    The time left goes by tokens, since long prompts take longer; trials of an earlier run do not count for the pace.
    `left`: the trials that are not finished; `own`: all trials of this process, None for those of the whole grid.
    """

    def __init__(
        self,
        grid: NeedleGrid | TaskGrid,
        left: Sequence[GridTrial | TaskTrial],
        *,
        own: Sequence[GridTrial | TaskTrial] | None = None,
        shown: bool = True,
    ) -> None:
        self._total = grid.num_trials if own is None else len(own)
        self._done, self._shown = self._total - len(left), shown
        self._tokens_left = sum(len(trial.prompt.input_ids) for trial in left)
        self._tokens_done = 0
        self._of_prompt: dict[str, int] = {}
        for trial in left:
            self._of_prompt[trial.prompt.trial_id] = self._of_prompt.get(trial.prompt.trial_id, 0) + 1
        self._prompts = len(grid.prompts) if own is None else len({trial.prompt.trial_id for trial in own})
        self._is_terminal = sys.stderr.isatty()
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left  {task.fields[now]}"),
            console=Console(stderr=True), disable=not (shown and self._is_terminal),
        )  # fmt: skip
        self._task = self._bar.add_task("trials", total=self._total, completed=self._done, left="-", now="")

    def update(self, trial: GridTrial | TaskTrial, row: Row) -> None:
        """Count a finished trial."""
        self._done += 1
        tokens = len(trial.prompt.input_ids)
        self._tokens_done += tokens
        self._tokens_left -= tokens
        self._of_prompt[trial.prompt.trial_id] -= 1
        self._bar.update(self._task, advance=1, left=self.time_left(), now=trial.id)
        if self._shown and not self._is_terminal and not self._of_prompt[trial.prompt.trial_id]:
            self._line()

    def time_left(self) -> str:
        """What is left at the pace so far, in words."""
        return time_left(time.monotonic() - self._began, self._tokens_done, self._tokens_left)

    def _line(self) -> None:
        through = self._prompts - sum(1 for left in self._of_prompt.values() if left)
        tell(
            f"{through} of {self._prompts} prompts, {self._done:,} of {self._total:,} trials, "
            f"{told_seconds(time.monotonic() - self._began)} so far, about {self.time_left()} left"
        )

    def __enter__(self) -> GridProgress:
        if self._shown and not self._is_terminal:
            tell(f"{self._prompts} prompts, {self._total:,} trials, {self._done:,} of them done")
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:  # older releases of rich print an empty line for a bar that was never shown
            self._bar.stop()


# -- results --------------------------------------------------------------------------------------------------------


def finished(folder: GridFolder, frame: EvaluationFrame, rows: list[Row]) -> tuple[GridSummary, dict[str, Any]]:
    """What rows are made into, written: the summary, and it as JSON."""
    summary = GridSummary(tuple(rows))
    record = summary_record(frame, summary)
    write_files(folder, summary, record)
    return summary, record


def write_files(folder: GridFolder, summary: GridSummary, record: dict[str, Any]) -> None:
    """Summary, table and pictures; what lies there from an earlier part of the run is replaced."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder.file(SUMMARY), text.encode(), overwrite=True)
    if summary.rows:
        write_atomically(folder.file(TABLE), markdown(summary, record).encode(), overwrite=True)
        _draw(folder, summary, record)


def _draw(folder: GridFolder, summary: GridSummary, record: dict[str, Any]) -> None:
    title = f"{record['model']}: needles on a compressed cache"
    about = heading(record)
    pictures = {GRID: lambda: figures().needle_grid_figure(summary, title, f"share of exact answers; {about}")}
    if summary.budgets:
        pictures[CURVE] = lambda: figures().recall_curve_figure(
            summary, title, f"share of exact answers by mean entries per KV head; {about}"
        )
    for name, draw in pictures.items():
        PictureFile(folder.file(name), "png", overwrite=True).write(draw)


def print_summary(folder: GridFolder, summary: GridSummary, record: dict[str, Any], as_json: bool) -> None:
    """The tables, or with `as_json` the record."""
    if as_json:
        write_json({"path": str(folder.path), **record})
        return
    console = stdout_console()
    console.print(f"{record['model']}, {heading(record)}\n", soft_wrap=True, markup=False)
    if summary.rows:
        for metric in PIVOTS:
            columns, rows = pivot(summary, metric)
            print_table(columns, rows, right=columns[1:])
            console.print()
        print_table(COLUMNS, [cell_row(cell) for cell in summary.cells], right=COLUMNS[1:])
        console.print(f"\n{legend(record)}", soft_wrap=True, markup=False)
    console.print(f"\nwritten to {folder.path}/", soft_wrap=True, markup=False)


def heading(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    seen = "the question is not seen at compression" if record["query_agnostic"] else "the question is seen"
    lengths = ", ".join(f"{length:,}" for length in record["lengths"]) or "no"
    windows = f"; {' and '.join(record['windows'])}" if record["windows"] else ""
    part = "" if record["is_complete"] else f", part of a run ({record['num_rows']:,} of {record['planned_rows']:,})"
    return (
        f"{record['num_prompts']} prompts of {lengths} tokens, needles {record['needles']}, "
        f"haystack {record['haystack']}, {seen}{windows}{part}"
    )


def legend(record: dict[str, Any]) -> str:
    """How to read the tables."""
    return (
        "exact: the answer's sentence word for word; F1: of its words; in parentheses, and as minus full: "
        "difference in points from the full cache on the same prompts, * where its 95 % interval excludes 0; "
        "distractor: the wrong sentence was chosen"
    )


def pivot(summary: GridSummary, metric: str = "exact_match") -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    """`metric` in percent, one row per policy, one column per budget, with the difference to the full cache."""
    cells = {(cell.key.name, cell.key.budget): cell for cell in summary.cells}
    rows: list[tuple[str | None, ...]] = []
    for name in summary.names:
        full = cells.get((name, None))
        if full is not None:
            shown = percent(getattr(full, metric).mean) if full.key == FULL else _pivot_cell(full, metric)
            rows.append((name, *([shown] * max(1, len(summary.budgets)))))
        else:
            rows.append((name, *(_pivot_cell(cells.get((name, budget)), metric) for budget in summary.budgets)))
    return (PIVOTS[metric], *(str(budget) for budget in summary.budgets or ("full",))), rows


def _pivot_cell(cell: Cell | None, metric: str) -> str | None:
    if cell is None or (mean := getattr(cell, metric).mean) is None:
        return None
    return f"{percent(mean)} ({points(cell.minus_full[metric])})"


def cell_row(cell: Cell) -> tuple[object, ...]:
    """A policy at a budget; what was not measured stays empty."""
    difference = cell.minus_full["exact_match"]
    is_full = cell.key == FULL
    return (
        cell.key.name,
        cell.key.budget,
        cell.num_prompts,
        percent(cell.exact_match.mean),
        span(cell.exact_match),
        None if is_full else points(difference),
        None if is_full else span(difference, signed=True),
        None if cell.answer_f1.mean is None else f"{cell.answer_f1.mean:.2f}",
        percent(cell.chose_distractor.mean),
        size(cell.kv_bytes_asked),
        size(cell.kv_bytes),
        None if cell.ttft_s is None else f"{cell.ttft_s:.2f} s",
        None if cell.s_per_token is None else f"{1000 * cell.s_per_token:.0f} ms",
    )


def percent(share: float | None, digits: int = 0) -> str | None:
    """A share in percent."""
    return None if share is None else f"{100 * share:.{digits}f}"


def span(found: Estimate, *, signed: bool = False, digits: int = 0) -> str | None:
    """The interval in percent."""
    if found.low is None or found.high is None:
        return None
    sign = "+" if signed else ""
    return f"{100 * found.low:{sign}.{digits}f} to {100 * found.high:{sign}.{digits}f}"


def points(found: Estimate, digits: int = 0) -> str:
    """A difference in points, with a star where the interval leaves out 0; `?` where nothing is to be compared."""
    if found.mean is None:
        return "?"
    apart = found.low is not None and found.high is not None and (found.low > 0 or found.high < 0)
    return f"{100 * found.mean:+.{digits}f}{'*' if apart else ''}"


def size(number: float | None) -> str | None:
    """Bytes with their unit."""
    return None if number is None else told_bytes(round(number))


def markdown(summary: GridSummary, record: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"{record['model']}, {heading(record)}.", *(markdown_table(*pivot(summary, metric)) for metric in PIVOTS)]
    parts += [markdown_table(COLUMNS, [cell_row(cell) for cell in summary.cells]), f"{legend(record)}."]
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table as Markdown; all columns but the first are set flush right."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "---:|" * (len(columns) - 1)]
    lines += ["| " + " | ".join("" if cell is None else str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines)

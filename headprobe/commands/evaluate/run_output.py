"""What `headprobe eval TASK` prints and writes: plan, tables with differences, cost, published figures, a picture."""

from __future__ import annotations

import json
from typing import Any

from headprobe.commands.evaluate.needles_output import markdown_table, percent, points, size, span
from headprobe.commands.output import plan_value, print_table, stdout_console, told_seconds, write_json
from headprobe.commands.picture_output import PictureFile, figures
from headprobe.evaluation.memory import MEMORY_NOTES, reading_plan
from headprobe.evaluation.summaries import FULL, EvaluationFrame
from headprobe.evaluation.task_folder import CURVE, SUMMARY, TABLE, TaskFolder, summary_record
from headprobe.evaluation.task_grid import TaskGrid
from headprobe.evaluation.task_summary import TaskCell, TaskSummary
from headprobe.evaluation.trials import Row
from headprobe.models.loading import LoadedModel
from headprobe.scores.files import write_atomically

TENTHS = 1  # digits: tasks differ by less than needles do
COLUMNS = (
    "policy", "budget", "prompts", "score", "95 %", "minus full", "95 %", "entries", "of full", "KV held",
    "first token", "per token", "a trial",
)  # fmt: skip
LEGEND = (
    "score: mean of the sets' metrics, in percent; in brackets, and as minus full: points of difference to the full "
    "cache on the same prompts (paired bootstrap), * where its 95 % interval leaves out 0; entries: kept in all layers "
    "and KV heads; KV held: their bytes, with room for the answer"
)


def print_plan(loaded: LoadedModel, grid: TaskGrid, as_json: bool) -> None:
    """How much there is to do."""
    prompts = {name: [p for p in grid.prompts if p.set == name] for name in grid.sets}
    plan: dict[str, Any] = {
        "model": loaded.name,
        "policies": [variant.name for variant in grid.variants],
        "budgets": list(grid.budgets),
        "prompts": len(grid.prompts),
        "trials": grid.num_trials,
        **reading_plan(loaded, max(len(p.input_ids) for p in grid.prompts), grid.options.prefill_chunk),
        "sets": {
            name: {
                "prompts": len(own),
                "tokens": max(len(p.input_ids) for p in own),
                "cut": sum(p.cut_tokens > 0 for p in own),
                "metric": ", ".join(dict.fromkeys(p.metric for p in own)),
                "max_new_tokens": max(p.max_new_tokens for p in own),
            }
            for name, own in prompts.items()
        },
    }
    if as_json:
        write_json(plan)
        return
    rows = [(key, plan_value(value), MEMORY_NOTES.get(key, "")) for key, value in plan.items() if key != "sets"]
    print_table(("", "plan", ""), rows)
    columns = ("set", "prompts", "longest", "cut", "metric", "new tokens")
    stdout_console().print()
    print_table(columns, [(name, *about.values()) for name, about in plan["sets"].items()], right=columns[1:4])


# -- results --------------------------------------------------------------------------------------------------------


def finished(folder: TaskFolder, frame: EvaluationFrame, rows: list[Row]) -> tuple[TaskSummary, dict[str, Any]]:
    """What rows are made into, written: the summary, and it as JSON."""
    summary = TaskSummary(tuple(rows))
    record = summary_record(frame, summary)
    write_results(folder, summary, record)
    return summary, record


def write_results(folder: TaskFolder, summary: TaskSummary, record: dict[str, Any]) -> None:
    """Summary, table and picture; what lies there from an earlier part of the run is replaced."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder.file(SUMMARY), text.encode("utf-8", "backslashreplace"), overwrite=True)
    if not summary.rows:
        return
    write_atomically(folder.file(TABLE), markdown(summary, record).encode(), overwrite=True)
    if summary.budgets:
        PictureFile(folder.file(CURVE), "png", overwrite=True).write(lambda: _figure(summary, record))


def _figure(summary: TaskSummary, record: dict[str, Any]) -> Any:
    about = f"mean score by mean entries per KV head; {heading(record)}"
    title = f"{record['model']}: tasks on a compressed cache"
    return figures().recall_curve_figure(summary, title, about, metric="score")


def print_results(folder: TaskFolder, summary: TaskSummary, record: dict[str, Any], as_json: bool) -> None:
    """The tables, or with `as_json` the record."""
    if as_json:
        write_json({"path": str(folder.path), **record})
        return
    console = stdout_console()
    console.print(f"{record['model']}, {heading(record)}\n", soft_wrap=True, markup=False)
    if summary.rows:
        for columns, rows in tables(summary, record):
            print_table(columns, rows, right=columns[1:])
            console.print()
        console.print(LEGEND, soft_wrap=True, markup=False)
        for note in notes(record):
            console.print(note, soft_wrap=True, markup=False)
    console.print(f"\nwritten to {folder.path}/", soft_wrap=True, markup=False)


Table = tuple[tuple[str, ...], list[tuple[object, ...]]]


def tables(summary: TaskSummary, record: dict[str, Any]) -> list[Table]:
    """Scores by set and budget, then what each policy costs, then published figures where there are such."""
    found = [pivot(summary, record, name) for name in summary.sets]
    if len(summary.sets) > 1:
        found.insert(0, pivot(summary, record, None))
    found.append((COLUMNS, [cell_row(cell) for cell in summary.cells]))
    if record["published"] is not None:
        found.append(published_table(record["published"]))
    return found


def pivot(summary: TaskSummary, record: dict[str, Any], name: str | None) -> Table:
    """Scores of one set (None: of all) in percent, a row per policy, a column per budget."""
    cells = {(cell.key.name, cell.key.budget): cell for cell in summary.cells_by_set if cell.set == name}
    if name is None:
        cells = {(cell.key.name, cell.key.budget): cell for cell in summary.cells}
    title = f"mean of {len(summary.sets)} sets" if name is None else f"{name}, {record['metrics'][name]}"
    rows: list[tuple[object, ...]] = []
    for policy in summary.names:
        full = cells.get((policy, None))
        if full is not None:
            shown = percent(full.score.mean, TENTHS) if full.key == FULL else _pivot_cell(full)
            rows.append((policy, *([shown] * max(1, len(summary.budgets)))))
        else:
            rows.append((policy, *(_pivot_cell(cells.get((policy, budget))) for budget in summary.budgets)))
    return (title, *(str(budget) for budget in summary.budgets or ("full",))), rows


def _pivot_cell(cell: TaskCell | None) -> str | None:
    if cell is None or cell.score.mean is None:
        return None
    return f"{percent(cell.score.mean, TENTHS)} ({points(cell.minus_full, TENTHS)})"


def cell_row(cell: TaskCell) -> tuple[object, ...]:
    """A policy at a budget, over all sets; what was not measured stays empty."""
    is_full = cell.key == FULL
    share = None if cell.kv_entries is None or not cell.full_kv_entries else cell.kv_entries / cell.full_kv_entries
    return (
        cell.key.name,
        cell.key.budget,
        cell.num_prompts,
        percent(cell.score.mean, TENTHS),
        span(cell.score, digits=TENTHS),
        None if is_full else points(cell.minus_full, TENTHS),
        None if is_full else span(cell.minus_full, signed=True, digits=TENTHS),
        None if cell.kv_entries is None else f"{cell.kv_entries:,.0f}",
        None if share is None else f"{100 * share:.1f} %",
        size(cell.kv_bytes),
        None if cell.ttft_s is None else f"{cell.ttft_s:.2f} s",
        None if cell.s_per_token is None else f"{1000 * cell.s_per_token:.0f} ms",
        None if cell.seconds is None else told_seconds(cell.seconds) if cell.seconds >= 10 else f"{cell.seconds:.2f} s",
    )


def published_table(published: dict[str, Any]) -> Table:
    """Ours and the paper's, mean of six sets of LongBench."""
    rows: list[tuple[object, ...]] = [
        (row["policy"], row["budget"], row["num_prompts"], _hundredths(row["score"]), _hundredths(row["published"]))
        for row in published["rows"]
    ]
    return ("six sets", "budget", "prompts", "ours", "published"), rows


def _hundredths(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.2f}"


def notes(record: dict[str, Any]) -> list[str]:
    """What belongs to the tables in words."""
    published: dict[str, Any] | None = record["published"]
    found = []
    if record["own_wording"] is None and any(name.startswith("longbench:") for name in record["sets"]):
        found.append("wording of the prompts: headprobe's own, not the benchmark's (--templates takes its file)")
    if published is not None:
        group = published["group"]
        found.append(
            f"published: {published['model']}, all questions, caches of query heads; at the same size they hold "
            f"{group} times the entries of ours per KV head"
        )
    return found


def heading(record: dict[str, Any]) -> str:
    """What was measured, in one line."""
    names = ", ".join(record["sets"][:4]) + (f" and {len(record['sets']) - 4} more" if len(record["sets"]) > 4 else "")
    seen = "the question is not seen at compression" if record["query_agnostic"] else "the question is seen"
    cut = f", {record['num_cut']} of them cut to the window" if record["num_cut"] else ""
    windows = f"; {' and '.join(record['windows'])}" if record["windows"] else ""
    part = "" if record["is_complete"] else f", part of a run ({record['num_rows']:,} of {record['planned_rows']:,})"
    return f"{record['num_prompts']} prompts of {names or 'no set'}{cut}, {seen}{windows}{part}"


def markdown(summary: TaskSummary, record: dict[str, Any]) -> str:
    """All tables as Markdown."""
    parts = [f"{record['model']}, {heading(record)}."]
    parts += [markdown_table(columns, rows) for columns, rows in tables(summary, record)]
    return "\n\n".join([*parts, f"{LEGEND}.", *(f"{note}." for note in notes(record))]) + "\n"

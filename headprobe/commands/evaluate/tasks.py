"""`headprobe eval tasks`: the tasks that there are."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, write_json
from headprobe.evaluation.metrics import METRICS
from headprobe.evaluation.task import TASKS, Task


def tasks_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the tasks, their sets and metrics, and where their texts come from."""
    records = [task_record(TASKS[name]) for name in TASKS]
    metrics = {name: METRICS[name].about for name in METRICS}
    if as_json:
        write_json({"tasks": records, "metrics": metrics})
        return
    print_table(("task", "about", "sets", "source"), [_row(record) for record in records])
    typer.echo()
    print_table(("metric", "about"), list(metrics.items()))


def task_record(task: Task) -> dict[str, Any]:
    """A task as `--json` prints it."""
    return {"name": task.name, "about": task.about, "sets": list(task.sets), "source": task.source}


def _row(record: dict[str, Any]) -> tuple[str, ...]:
    sets = record["sets"]
    shown = ", ".join(sets) if len(sets) <= 25 else f"{', '.join(sets[:3])}, ... {sets[-1]} ({len(sets)})"
    return record["name"], record["about"], shown, record["source"]

"""`headprobe eval merge`: the parts of an evaluation as one run, without its model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.evaluate.needles_output import print_summary, write_files
from headprobe.commands.evaluate.run_output import print_results, write_results
from headprobe.commands.interrupts import Orderly
from headprobe.evaluation import needle_folder, task_folder
from headprobe.evaluation.merge import MergedRun, merged_run
from headprobe.evaluation.needle_summary import GridSummary
from headprobe.evaluation.task_folder import TaskFolder
from headprobe.evaluation.task_summary import TaskSummary
from headprobe.evaluation.trials import Row
from headprobe.home import in_home
from headprobe.stages import timed

AGAIN = "no row is lost: give the command again"


def merge_command(
    folders: Annotated[
        list[Path],
        typer.Argument(metavar="DIR...", help="Folders that hold all parts of one run.", show_default=False),
    ],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder; default the one given.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print summary.json.")] = False,
) -> None:
    """Put the parts of an evaluation (--shard) together, without its model: rows, summary, table and pictures."""
    target = None if output is None else in_home(output)
    with timed(), Orderly(AGAIN):
        merged = merged_run([in_home(folder) for folder in folders], target, overwrite=overwrite)
        if isinstance(merged.folder, TaskFolder):
            _merge_tasks(merged, merged.folder, as_json)
        else:
            _merge_needles(merged, as_json)


def _merge_needles(merged: MergedRun, as_json: bool) -> None:
    def finish(rows: list[Row]) -> tuple[GridSummary, dict[str, Any]]:
        summary = GridSummary(tuple(rows))
        record = needle_folder.summary_record(merged.frame, summary)
        write_files(merged.folder, summary, record)
        return summary, record

    print_summary(merged.folder, *merged.made(finish), as_json)


def _merge_tasks(merged: MergedRun, folder: TaskFolder, as_json: bool) -> None:
    def finish(rows: list[Row]) -> tuple[TaskSummary, dict[str, Any]]:
        summary = TaskSummary(tuple(rows))
        record = task_folder.summary_record(merged.frame, summary)
        write_results(folder, summary, record)
        return summary, record

    print_results(folder, *merged.made(finish), as_json)

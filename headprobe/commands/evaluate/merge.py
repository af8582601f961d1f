"""`headprobe eval merge`: the parts of an evaluation as one run, without its model."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.evaluate import needles_output, run_output
from headprobe.commands.interrupts import Orderly
from headprobe.evaluation.merge import merged_run
from headprobe.evaluation.task_folder import TaskFolder
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
            made = merged.made(partial(run_output.finished, merged.folder, merged.frame))
            run_output.print_results(merged.folder, *made, as_json)
        else:
            found = merged.made(partial(needles_output.finished, merged.folder, merged.frame))
            needles_output.print_summary(merged.folder, *found, as_json)

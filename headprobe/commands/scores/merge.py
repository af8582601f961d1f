"""`headprobe scores merge`: several runs of one measurement as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.output import stdout_console, tell, write_json
from headprobe.scores.any_scores import read_any
from headprobe.scores.files import check_place, refuse_one_place
from headprobe.scores.merge import merge
from headprobe.scores.score_file import write_score_file


def merge_command(
    files: Annotated[list[Path], typer.Argument(help="Two or more native score files.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="The joint score file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Join score files of one model and method into one; files that do not belong together are refused."""
    refuse_one_place({"-o": output}, {f"input {number}": path for number, path in enumerate(files, 1)})
    check_place(output, overwrite)
    merged = merge([read_any(path) for path in files])
    write_score_file(output, merged.scores, overwrite=overwrite)
    for note in merged.notes:
        tell(note)
    if as_json:
        write_json(
            {
                "path": str(output),
                "num_parts": len(merged.scores.extra["parts"]),
                "num_trials": merged.scores.num_trials,
                "num_passed": merged.scores.num_passed,
                "num_repeated": merged.num_repeated,
                "notes": list(merged.notes),
            }
        )
        return
    once = f", {merged.num_repeated} repeated and used once" if merged.num_repeated else ""
    total = f"{merged.scores.num_passed} of {merged.scores.num_trials} trials passed"
    stdout_console().print(f"{len(files)} files, {total}{once}; written to {output}", soft_wrap=True, markup=False)

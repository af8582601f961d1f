"""`headprobe scores merge`: several runs of one measurement, or the parts of one run, as one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.output import stdout_console, tell, write_json
from headprobe.errors import FileFormatError, OptionError
from headprobe.profiling.journal_file import BEGINNING
from headprobe.scores.any_scores import read_any
from headprobe.scores.files import check_place, refuse_one_place
from headprobe.scores.merge import merge
from headprobe.scores.score_file import write_score_file


def merge_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Two or more native score files, or the journals of all parts of a run.", show_default=False
        ),
    ],
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FILE", help="The joint score file; a folder for parts of several methods."
        ),
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that exists.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Join score files of one model and method, or the parts of a run; what does not belong together is refused."""
    journals = [path for path in files if is_part(path)]
    if not journals:
        merge_files(files, Path(output), overwrite, as_json)
    elif len(journals) < len(files):
        other = next(path for path in files if path not in journals)
        raise OptionError(f"{journals[0]} is the journal of a part and {other} is not: merge the parts of a run first")
    else:
        from headprobe.commands.scores.merge_parts import merge_journals  # torch, which score files do without

        merge_journals(journals, output, overwrite, as_json)


def is_part(path: Path) -> bool:
    """Whether the file begins as a journal does; a folder, and a pipe that would keep us waiting, are none. Raises
    `FileFormatError` where it cannot be read."""
    if path.exists() and not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(BEGINNING)) == BEGINNING
    except OSError as error:
        raise FileFormatError(error.strerror or str(error), path) from None


def merge_files(files: list[Path], output: Path, overwrite: bool, as_json: bool) -> None:
    """Join score files."""
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

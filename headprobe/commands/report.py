"""`headprobe report`: one page about score files, to open in a browser or to send."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.output import stdout_console, write_json
from headprobe.commands.reading import with_geometry
from headprobe.commands.scores.validate import suspect_at
from headprobe.errors import OptionError
from headprobe.pictures.report.report import report_html
from headprobe.scores.files import MAX_BYTES, check_place, refuse_one_place, write_atomically
from headprobe.scores.validation import validate


def report_command(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Score files, native or foreign.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The page, ending in .html.")] = Path(
        "report.html"
    ),
    title: Annotated[
        str | None, typer.Option("--title", help="Name of the page; default: from the first file.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose scores these are, for files that do not say: an alias, id or folder."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing page.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a line.")] = False,
) -> None:
    """Write one self-contained HTML page about score files, which needs no network and no server."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise OptionError(f"cannot write {output.name}: a report ends in .html")
    refuse_one_place({"-o": output}, {f"input {number}": path for number, path in enumerate(files, 1)})
    check_place(output, overwrite)
    suspects = [suspect_at(file, model, None, MAX_BYTES) for file in files]
    scores = [with_geometry(suspect.scores, model) for suspect in suspects]
    page = report_html(scores, validate(suspects), title)
    write_atomically(output, page, overwrite)
    if as_json:
        write_json({"path": str(output), "bytes": len(page), "files": [str(file) for file in files]})
        return
    stdout_console().print(f"report: {output} ({len(page):,} bytes)", soft_wrap=True, highlight=False, markup=False)

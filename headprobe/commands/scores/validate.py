"""`headprobe scores validate`: can these files be trusted?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, printable, stdout_console, write_json
from headprobe.commands.reading import stated_model
from headprobe.errors import FileFormatError, OptionError
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.scores.any_scores import read_any
from headprobe.scores.checks import Suspect
from headprobe.scores.files import MAX_BYTES
from headprobe.scores.provenance import METHODS
from headprobe.scores.validation import FileReport, unreadable_report, validate

KNOWN = ", ".join(dict.fromkeys([*METHODS, *ESTIMATORS]))


def validate_command(
    files: Annotated[list[Path], typer.Argument(help="Score files, native or foreign.", show_default=False)],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose scores these should be: an alias, a hub id of the catalog or a folder."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            "--method", help=f"The method said to have produced them, where a file does not state it: {KNOWN}."
        ),
    ] = None,
    max_bytes: Annotated[int, typer.Option("--max-bytes", help="Refuse larger files.")] = MAX_BYTES,
    as_json: Annotated[bool, typer.Option("--json", help="Print a list with one object per file.")] = False,
) -> None:
    """Check score files for common faults. Exits with code 3 when a file has an error."""
    _check_method(method)
    reports = reports_on(files, model, method, max_bytes)
    if as_json:
        write_json([report_record(report) for report in reports])
    else:
        for report in reports:
            _print(report)
    if any(report.has_error for report in reports):
        raise typer.Exit(FileFormatError.exit_code)


def report_record(report: FileReport) -> dict[str, Any]:
    """A file's report as `--json` prints it."""
    return {
        "path": str(report.path),
        "format": report.format,
        "findings": finding_records(report),
        "passed": list(report.passed),
    }


def finding_records(report: FileReport) -> list[dict[str, Any]]:
    """The findings as `--json` prints them."""
    return [dict(vars(finding)) for finding in report.findings]


def refusal(report: FileReport, with_errors: bool = False) -> str | None:
    """Why a file is refused: its first error; None where it has none, or where errors are wanted and it is readable."""
    if with_errors and report.format is not None:
        return None
    errors = [finding for finding in report.findings if finding.severity == "error"]
    return f"{errors[0].check}: {errors[0].detail}" if errors else None


def suspect_at(path: Path, model: str | None, method: str | None, max_bytes: int) -> Suspect:
    """Read a file and add what is stated about it elsewhere. Raises `FileFormatError`."""
    scores = read_any(path, max_bytes)
    stated = stated_model(scores, model)
    facts = None if method is None or method in METHODS else ESTIMATORS[method].facts
    if stated is None:
        return Suspect(scores, scores.model, scores.geometry, "the file", method or scores.method, facts)
    return Suspect(scores, stated.name, stated.geometry, stated.source, method or scores.method, facts)


def reports_on(files: list[Path], model: str | None, method: str | None, max_bytes: int) -> list[FileReport]:
    """A report on each file, in the order given; those that cannot be read have one too."""
    suspects: dict[int, Suspect] = {}
    reports: dict[int, FileReport] = {}
    for index, path in enumerate(files):
        try:
            suspects[index] = suspect_at(path, model, method, max_bytes)
        except FileFormatError as error:
            reports[index] = unreadable_report(path, error)
    reports |= dict(zip(suspects, validate(list(suspects.values())), strict=True))
    return [reports[index] for index in sorted(reports)]


def _check_method(method: str | None) -> None:
    if method is not None and method not in METHODS and method not in ESTIMATORS:
        raise OptionError(f"--method is {method!r}, need one of {KNOWN}")


def _print(report: FileReport) -> None:
    console = stdout_console()
    counts = [sum(f.severity == severity for f in report.findings) for severity in ("error", "warning")]
    told = f"({report.format or 'unknown format'}): {_count(counts[0], 'error')}, {_count(counts[1], 'warning')}"
    console.print(f"{printable(str(report.path))} {told}", soft_wrap=True, markup=False)
    rows = [(f"  {f.severity}", f.check, f"{f.detail}\n({f.why})") for f in report.findings]
    if rows:
        print_table(("", "", ""), rows)
    if report.passed:
        print_table(("", ""), [("  passed", ", ".join(report.passed))])
    console.print()


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"

"""Score files on their way to or from the hub: the checks of `headprobe scores validate`, before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from headprobe.commands.scores.validate import suspect_at
from headprobe.errors import FileFormatError
from headprobe.scores.validation import FileReport, unreadable_report, validate


def check_files(paths: list[Path], max_bytes: int) -> list[FileReport]:
    """A report on each file, in the order given; those that cannot be read have one too."""
    suspects, unreadable = {}, {}
    for path in paths:
        try:
            suspects[path] = suspect_at(path, None, None, max_bytes)
        except FileFormatError as error:
            unreadable[path] = unreadable_report(path, error)
    reports = unreadable | dict(zip(suspects, validate(list(suspects.values())), strict=True))
    return [reports[path] for path in paths]


def check_downloads(repo_id: str, downloads: Mapping[str, bytes]) -> dict[str, FileReport]:
    """A report on each download, by its name. They are looked at together, in a folder that is gone afterwards."""
    with TemporaryDirectory(prefix="headprobe-") as folder:
        root = Path(folder) / repo_id.split("/")[1]
        paths = {name: root / name for name in downloads}
        for name, path in paths.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(downloads[name])
        largest = max(map(len, downloads.values()), default=0)
        reports = check_files(list(paths.values()), largest)
    return {name: _without(f"{root}/", report) for name, report in zip(paths, reports, strict=True)}


def finding_records(report: FileReport) -> list[dict[str, Any]]:
    """The findings as `--json` prints them."""
    return [dict(vars(finding)) for finding in report.findings]


def refusal(report: FileReport, with_errors: bool = False) -> str | None:
    """Why a file is refused: its first error; None where it has none, or where errors are wanted and it is readable."""
    if with_errors and report.format is not None:
        return None
    errors = [finding for finding in report.findings if finding.severity == "error"]
    return f"{errors[0].check}: {errors[0].detail}" if errors else None


def _without(folder: str, report: FileReport) -> FileReport:
    findings = tuple(replace(finding, detail=finding.detail.replace(folder, "")) for finding in report.findings)
    return replace(report, findings=findings)

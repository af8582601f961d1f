"""Can a score file be trusted? All checks on all files, each by itself and against the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from headprobe.errors import FileFormatError
from headprobe.scores.any_scores import UnreadableScoresError, read_any
from headprobe.scores.checks import ERROR, LAYOUT_CHECKS, TRIAL_CHECKS, VALUE_CHECKS, WARNING, Check, Finding, Suspect
from headprobe.scores.files import MAX_BYTES

CHECKS: tuple[Check, ...] = (*LAYOUT_CHECKS, *VALUE_CHECKS, *TRIAL_CHECKS)
IDENTICAL = "identical-scores"
_WHY_IDENTICAL = "one of them does not hold what its name says"
_WHY_UNREADABLE = "no program can know which scores were meant"
_ORDER = {ERROR: 0, WARNING: 1, "info": 2}


@dataclass(frozen=True)
class FileReport:
    """What the checks found in one file, most serious first, and the names of those that found nothing."""

    path: Path
    format: str | None
    findings: tuple[Finding, ...]
    passed: tuple[str, ...]

    @property
    def has_error(self) -> bool:
        """Whether any finding is an error."""
        return any(finding.severity == ERROR for finding in self.findings)


def validate(suspects: Sequence[Suspect]) -> list[FileReport]:
    """Run every check on every file; `identical-scores` compares those given together, byte by byte and by content.

    Never raises for what a file holds.
    """
    twins = _twins(suspects)
    reports = [_report(suspect, twins[index]) for index, suspect in enumerate(suspects)]
    if len(suspects) > 1:
        return [_told_apart(report) for report in reports]
    return reports


def validate_file(path: Path | str, max_bytes: int = MAX_BYTES) -> FileReport:
    """Read and check one file by its own word, also one that cannot be read."""
    try:
        return validate([Suspect.of(read_any(path, max_bytes))])[0]
    except FileFormatError as error:
        return unreadable_report(Path(path), error)


def unreadable_report(path: Path, error: FileFormatError) -> FileReport:
    """The report on a file that could not be read; the finding has the name of the check that failed."""
    if isinstance(error, UnreadableScoresError):
        finding = Finding(error.check, ERROR, error.reason, _WHY_UNREADABLE)
    else:
        finding = Finding("unreadable", ERROR, str(error).removeprefix(f"{path}: "), _WHY_UNREADABLE)
    return FileReport(path, None, (finding,), ())


def _report(suspect: Suspect, twin: Finding | None) -> FileReport:
    seen = [(check, check.look(suspect)) for check in CHECKS if check.applies(suspect)]
    findings = [Finding(check.name, *found, check.why) for check, found in seen if found is not None]
    findings += [] if twin is None else [twin]
    passed = [check.name for check, found in seen if found is None]
    findings.sort(key=lambda finding: _ORDER[finding.severity])
    return FileReport(suspect.scores.path, suspect.scores.format, tuple(findings), tuple(passed))


def _told_apart(report: FileReport) -> FileReport:
    """With `identical-scores` among the checks passed, unless it found something."""
    if any(finding.check == IDENTICAL for finding in report.findings):
        return report
    return replace(report, passed=(*report.passed, IDENTICAL))


def _twins(suspects: Sequence[Suspect]) -> list[Finding | None]:
    """For each file the finding that another given file holds the same."""
    contents = [_content(suspect) for suspect in suspects]
    return [_twin(suspects, contents, index) for index in range(len(suspects))]


def _twin(suspects: Sequence[Suspect], contents: list[str], index: int) -> Finding | None:
    mine = suspects[index]
    others = [other for i, other in enumerate(suspects) if i != index and contents[i] == contents[index]]
    if not others:
        return None
    liar = next((other for other in others if mine.model and other.model and other.model != mine.model), None)
    other = liar or others[0]
    how = "byte for byte" if other.scores.sha256 == mine.scores.sha256 else "in every head's score"
    models = f": {mine.model} and {other.model} cannot have the same scores" if liar else ""
    detail = f"the same {how} as {other.scores.path}{models}"
    return Finding(IDENTICAL, ERROR if liar else WARNING, detail, _WHY_IDENTICAL)


def _content(suspect: Suspect) -> str:
    mean = np.round(suspect.scores.mean, 9) + 0.0
    return sha256(f"{mean.shape}".encode() + mean.tobytes()).hexdigest()

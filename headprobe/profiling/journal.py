"""The append-only record of finished trials, so that a killed run goes on where it stopped.

One JSON object a line: first the header with the plan's description, then a line per trial, flushed to disk before the
next trial starts. A last line cut short by a kill is dropped at reading; damage anywhere else is an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from headprobe.errors import FileAccessError, FileFormatError, OutputExistsError, ResumeError
from headprobe.probes.plan import difference

SCHEMA = "headprobe-journal/1"


class Journal:
    """Finished trials of one plan, by trial id; `add` appends one and forces it to disk.

    Use `Journal.start` for a new file and `Journal.resume` for an old one; both are context managers.
    """

    def __init__(self, path: Path, file: BinaryIO, records: dict[str, dict[str, Any]]) -> None:
        self.path = path
        self._file = file
        self.records = records

    @classmethod
    def start(cls, path: Path, plan: Mapping[str, Any]) -> Journal:
        """Create the journal of `plan`. Raises `OutputExistsError` when one lies there already."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("xb")
        except OSError as error:
            if path.exists():
                raise OutputExistsError(
                    f"{path} holds an unfinished run: go on with --resume or start anew with --overwrite"
                ) from None
            raise FileAccessError(f"cannot write {path}: {error.strerror}") from None
        journal = cls(path, file, {})
        journal._write({"schema": SCHEMA, "plan": dict(plan)})
        return journal

    @classmethod
    def resume(cls, path: Path, plan: Mapping[str, Any]) -> Journal:
        """Open the journal of `plan`, or start it where there is none.

        Raises `ResumeError` naming the fields that differ when it was written for another plan, and `FileFormatError`
        when a line other than the last is damaged.
        """
        if not path.exists():
            return cls.start(path, plan)
        try:
            lines, good_bytes = _whole_lines(path)
        except OSError as error:
            raise FileAccessError(f"cannot read {path}: {error.strerror}") from None
        if not lines:
            path.unlink()
            return cls.start(path, plan)
        header = lines[0]
        if header.get("schema") != SCHEMA or not isinstance(header.get("plan"), dict):
            raise FileFormatError(f"not a {SCHEMA} journal", path, 1)
        changed = difference(header["plan"], orjson.loads(orjson.dumps(dict(plan))))
        changed = [c for c in changed if not c.startswith("prompts_sha256")] or changed
        if changed:
            raise ResumeError(
                f"{path} was written for another plan, which differs in {'; '.join(changed)}: "
                "use the old options, or --overwrite"
            )
        file = path.open("r+b")
        file.truncate(good_bytes)
        file.seek(0, os.SEEK_END)
        return cls(path, file, {record["trial"]: record for record in lines[1:]})

    def add(self, record: dict[str, Any]) -> None:
        """Append a finished trial (a JSON object with a `trial` id)."""
        self._write(record)
        self.records[record["trial"]] = record

    def _write(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(orjson.dumps(record) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise FileAccessError(f"cannot write {self.path}: {error.strerror}") from None

    def discard(self) -> None:
        """Remove the file once its run is safely written elsewhere."""
        self._file.close()
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()


def _whole_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The parsed lines, and how many bytes they take; a last line without its newline or broken is left out."""
    raw = path.read_bytes()
    lines: list[dict[str, Any]] = []
    good = 0
    parts = raw.split(b"\n")
    for number, part in enumerate(parts[:-1], 1):
        try:
            record = orjson.loads(part)
        except orjson.JSONDecodeError as error:
            if number == len(parts) - 1:
                break
            raise FileFormatError(f"damaged journal line ({error})", path, number) from None
        if not isinstance(record, dict) or (number > 1 and not isinstance(record.get("trial"), str)):
            raise FileFormatError("journal line is not a trial", path, number)
        lines.append(record)
        good += len(part) + 1
    return lines, good

"""The append-only record of finished trials, each checked as it is read back, so that a killed run goes on."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import orjson

from headprobe.errors import FileAccessError, FileFormatError, OptionError, OutputExistsError, ResumeError
from headprobe.events import RETRY, emit
from headprobe.probes.plan import difference
from headprobe.profiling.journal_file import (
    SCHEMA,
    JournalLines,
    JournalRecords,
    Record,
    is_journal,
    is_unwritten,
    open_locked,
    parsed_lines,
)
from headprobe.scores.files import check_place, refuse_one_place
from headprobe.stages import WRITE, stage

# The append-only record of finished trials, so that a killed run goes on where it stopped.
#
# One JSON object a line: first the header with the plan's description, then a line per trial, flushed to disk before
# the next trial starts. A last line cut short by a kill, or damage behind which there is no trial, is dropped at
# reading; damage anywhere else is an error. As long as a journal is open, no other process can write to it.

Check = Callable[[Record], None]


class Journal:
    """Finished trials of one plan, as `records` by trial id; `add` appends one and forces it to disk.

    Use `Journal.start` for a new file, `Journal.resume` for an old one and `Journal.open` where options decide; all are
    context managers. `dropped`: how many damaged lines at the end have been dropped.
    """

    def __init__(self, path: Path, descriptor: int, dropped: int = 0) -> None:
        self.path = path
        self._descriptor: int | None = descriptor
        self._end = 0
        self.records = JournalRecords(path)
        self.dropped = dropped

    @property
    def was_cut(self) -> bool:
        """Whether the end was cut short or damaged."""
        return self.dropped > 0

    @classmethod
    def open(
        cls,
        path: Path,
        plan: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        check: Check | None = None,
        frame: Record | None = None,
    ) -> Journal:
        """Continue with `resume`, start over with `overwrite` alone, else start. Raises as `start` and `resume`.

        `frame`: what a new journal states besides, for those who make a result of it without the model.
        """
        return cls.resume(path, plan, check, frame) if resume else cls.start(path, plan, overwrite, frame)

    @classmethod
    def start(
        cls, path: Path, plan: Mapping[str, Any], overwrite: bool = False, frame: Record | None = None
    ) -> Journal:
        """Create the journal of `plan`; with `overwrite` in place of an older journal.

        Raises `OutputExistsError` when a journal lies there already, or with `overwrite` something that is none, and
        `ResumeError` when another process is writing it.
        """
        header = _header(plan, frame)
        descriptor, raw = open_locked(path)
        try:
            _refuse_held(path, raw, overwrite)
        except OutputExistsError:
            os.close(descriptor)
            raise
        return cls._begun(path, descriptor, header)

    @classmethod
    def resume(
        cls, path: Path, plan: Mapping[str, Any], check: Check | None = None, frame: Record | None = None
    ) -> Journal:
        """Open the journal of `plan`, or start it where there is none.

        `check` raises `ValueError` for a record that is not what the run writes. Raises `ResumeError` naming the fields
        that differ when it was written for another plan, or when another process is writing it, and `FileFormatError`
        when a line with trials behind it is damaged.
        """
        header = _header(plan, frame)
        descriptor, raw = open_locked(path)
        try:
            if is_unwritten(raw):
                return cls._begun(path, descriptor, header)
            read = _checked_lines(path, raw, header, check)
            os.ftruncate(descriptor, read.good_bytes)
        except BaseException:
            os.close(descriptor)
            raise
        if read.dropped:
            emit(RETRY, file=str(path), lines=read.dropped, reason="the end was cut short or damaged")
        journal = cls(path, descriptor, read.dropped)
        for place in read.trials:
            journal.records.stand(*place)
        journal._end = read.good_bytes
        return journal

    @classmethod
    def _begun(cls, path: Path, descriptor: int, header: bytes) -> Journal:
        journal = cls(path, descriptor)
        try:
            os.ftruncate(descriptor, 0)
            journal._append(header)
        except BaseException:
            journal.discard()
            raise
        return journal

    def add(self, record: Record) -> None:
        """Append a finished trial (a JSON object with a `trial` id)."""
        self.add_all([record])

    def add_all(self, records: Sequence[Record]) -> None:
        """Append several in one go, as those of other journals."""
        if not records:
            return
        lines, start = [_line(record) for record in records], self._end
        self._append(b"".join(lines))
        for record, line in zip(records, lines, strict=True):
            self.records.stand(record["trial"], start, len(line) - 1)
            start += len(line)

    def _append(self, line: bytes) -> None:
        assert self._descriptor is not None
        size = len(line)
        try:
            with stage(WRITE):
                while line:
                    line = line[os.write(self._descriptor, line) :]
                os.fsync(self._descriptor)
        except OSError as error:
            with suppress(OSError):  # what is left of a line would be dropped at the next reading
                os.ftruncate(self._descriptor, self._end)
            raise FileAccessError(f"cannot write {self.path}: {error.strerror}") from None
        self._end += size

    def discard(self) -> None:
        """Remove the file once its run is safely written elsewhere."""
        if os.name == "nt":  # which removes no open file; elsewhere the lock is held until the name is gone
            self.records.close()
            self._close()
        self.path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()


def written_so_far(path: Path, plan: Mapping[str, Any], check: Check) -> list[Record]:
    """The trials in a journal that another process may be writing, or remove; none where there is no file.

    It is read without its lock, which its own process may want at any moment, and is left as it is. Raises
    `ResumeError` for a journal of another plan, `FileFormatError` for a damaged one, and `FileAccessError`.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror}") from None
    if is_unwritten(raw):
        return []
    return _records(raw, _checked_lines(path, raw, _header(plan), check))


@dataclass(frozen=True, eq=False)
class Contents:
    """What a journal holds: the plan and the frame that its header states, and the trials so far; damaged lines at its
    end are left out."""

    path: Path
    plan: Record
    frame: Record | None
    records: list[Record]


def contents(path: Path) -> Contents:
    """All of a journal that another process may be writing, which is left as it is.

    Raises `FileFormatError` for what is no journal and for a damaged one, and `FileAccessError`.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise FileAccessError(f"cannot read {path}: {error.strerror}") from None
    read = parsed_lines(raw, path)
    plan, frame = read.header.get("plan"), read.header.get("frame")
    if not isinstance(plan, dict) or not isinstance(frame, dict | None):
        raise FileFormatError(f"not a {SCHEMA} journal", path, 1)
    return Contents(path, plan, frame, _records(raw, read))


def _records(raw: bytes, read: JournalLines) -> list[Record]:
    return [orjson.loads(raw[start : start + size]) for _, start, size in read.trials]


def check_journal(path: Path, *, resume: bool, overwrite: bool, holding: str = "an unfinished run") -> bool:
    """Before the long work: whether there is a journal to continue; `holding` says in a message what it holds.

    Raises as `Journal.open` would, as far as the plan does not matter.
    """
    if not os.path.lexists(path):
        check_place(path)
        return False
    descriptor, raw = open_locked(path)
    os.close(descriptor)
    if resume and not is_unwritten(raw):
        parsed_lines(raw, path)
    elif not resume:
        _refuse_held(path, raw, overwrite, holding)
    return is_journal(raw)


def check_run(
    rows: Path,
    derived: Sequence[Path],
    *,
    resume: bool,
    overwrite: bool,
    inputs: Mapping[str, Path | str | None] | None = None,
    parts: Sequence[Path] = (),
) -> None:
    """Refuse, before the long work, a run into a folder that would fail there or lose a file.

    `rows`: its journal; `derived`: what is made from that, anew each time; `inputs`: files that the run reads, by what
    they are called in a message; `parts`: journals of its parts that are there. Raises `OptionError` where an input
    would be written over, `OutputExistsError`, `FileAccessError`, and `ResumeError` where another process writes.
    """
    refuse_one_place({"the output": rows} | {f"the output's {place.name}": place for place in derived}, inputs)
    if parts and not resume and not overwrite:
        raise OutputExistsError(
            f"{parts[0]} holds a part of a run: collect it with --resume or start over with --overwrite"
        )
    goes_on = (check_journal(rows, resume=resume, overwrite=overwrite, holding="a run") or bool(parts)) and resume
    for place in derived:
        check_place(place, overwrite or goes_on)


def _header(plan: Mapping[str, Any], frame: Record | None = None) -> bytes:
    return _line({"schema": SCHEMA, "plan": dict(plan)} | ({} if frame is None else {"frame": frame}))


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return orjson.dumps(record) + b"\n"
    except TypeError as error:  # integers beyond 64 bits, names that are not UTF-8
        raise OptionError(f"this plan cannot be written down: {error}") from None


def _refuse_held(path: Path, raw: bytes, overwrite: bool, holding: str = "an unfinished run") -> None:
    if is_unwritten(raw) or (overwrite and is_journal(raw)):
        return
    if is_journal(raw):
        raise OutputExistsError(f"{path} holds {holding}: continue with --resume or start over with --overwrite")
    raise OutputExistsError(f"{path} exists but is not a journal of a run: move it away, or name another output")


def _checked_lines(path: Path, raw: bytes, header: bytes, check: Check | None) -> JournalLines:
    """What the journal at `path` holds. Raises where that is damaged, or not of the plan in `header`."""
    read = parsed_lines(raw, path)
    _check_plan(path, read.header, orjson.loads(header)["plan"])
    _check_records(path, raw, read, check)
    return read


def plan_changes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """Where two plans differ, in words; that their prompts do is said only where nothing says why."""
    changed = difference(first, second)
    return [c for c in changed if not c.startswith("prompts_sha256")] or changed


def _check_plan(path: Path, header: Record, plan: Mapping[str, Any]) -> None:
    if header.get("schema") != SCHEMA or not isinstance(header.get("plan"), dict):
        raise FileFormatError(f"not a {SCHEMA} journal", path, 1)
    changed = plan_changes(header["plan"], plan)
    if changed:
        raise ResumeError(
            f"{path} was written for another plan, which differs in {'; '.join(changed)}: "
            "use the old options, or --overwrite"
        )


def _check_records(path: Path, raw: bytes, read: JournalLines, check: Check | None) -> None:
    if check is None:
        return
    for number, (_, start, size) in enumerate(read.trials, 2):
        record = orjson.loads(raw[start : start + size])
        try:
            check(record)
        except ValueError as error:
            raise FileFormatError(
                f"damaged trial {record['trial']!r:.80}: {error}; remove the line and it runs again", path, number
            ) from None

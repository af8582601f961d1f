"""The journal as a file: opened for one process alone, known from other files, read line by line or by record."""

from __future__ import annotations

import errno
import os
import sys
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from headprobe.errors import FileAccessError, FileFormatError, ResumeError
from headprobe.scores.files import open_to_add

# A lock on an open file that other processes heed, and that ends with the process however it ends.

UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
BEYOND = 2**40  # Windows keeps others from reading what is locked, so there it is a byte that no file has


def try_lock(descriptor: int) -> bool:
    """Lock the open file for this process, without waiting; False where another one holds it.

    True too on file systems that know no locks: nobody can hold one there.
    """
    try:
        _lock(descriptor)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EDEADLK):  # Windows
            return False
        if error.errno in UNSUPPORTED:
            return True
        raise
    return True


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        place = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, BEYOND, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        finally:
            os.lseek(descriptor, place, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


SCHEMA = "headprobe-journal/1"
BEGINNING = b'{"schema":"' + SCHEMA.encode() + b'"'


class HeldError(ResumeError):
    """Another process is writing the journal."""


def open_locked(path: Path) -> tuple[int, bytes]:
    """The descriptor of the file, made where it is missing and locked for this process, and all that it holds.

    Raises `ResumeError` where another process has it, `OutputExistsError` where it is not a regular file,
    `FileAccessError`.
    """
    while True:
        descriptor = open_to_add(path)
        try:
            if not try_lock(descriptor):
                raise HeldError(f"another process is writing {path}: wait until it ends, or name another output")
            if _is_at(descriptor, path):
                return descriptor, _all_of(descriptor)
        except OSError as error:
            os.close(descriptor)
            raise FileAccessError(f"cannot read {path}: {error.strerror}") from None
        except ResumeError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its run ended between our opening and our locking, and removed it


def is_unwritten(raw: bytes) -> bool:
    """Whether the file holds nothing yet: it is empty, or a header that was cut short (by a kill or a lost machine)."""
    is_cut = b"\n" not in raw and (raw.startswith(BEGINNING) or BEGINNING.startswith(raw))
    return is_cut or not raw.strip(b"\0")


def is_journal(raw: bytes) -> bool:
    """Whether the file begins as a journal does.

    >>> is_journal(b'{"schema":"headprobe-journal/1","plan":{}}\\n'), is_journal(b"my notes\\n")
    (True, False)
    """
    first, newline, _ = raw.partition(b"\n")
    try:
        header = orjson.loads(first)
    except orjson.JSONDecodeError:
        return False
    return bool(newline) and isinstance(header, dict) and header.get("schema") == SCHEMA


@dataclass(frozen=True)
class JournalLines:
    """Where the lines of a journal stand: `trials` by id with first byte and length, `good_bytes` of all that is right.

    `dropped`: how many damaged lines behind that are left out.
    """

    header: dict[str, Any]
    trials: list[tuple[str, int, int]]
    good_bytes: int
    dropped: int


def parsed_lines(raw: bytes, path: Path) -> JournalLines:
    """Header and trials; damage at the end, behind which no trial can be read, is left out.

    That is a last line without its newline, and whatever a lost machine left there. Raises `FileFormatError` for what
    is no journal, and for a damaged line with trials behind it.
    """
    if not is_journal(raw):
        raise FileFormatError(f"not a {SCHEMA} journal", path, 1)
    trials: list[tuple[str, int, int]] = []
    *parts, rest = raw.split(b"\n")
    good = len(parts[0]) + 1
    for number, part in enumerate(parts[1:], 2):
        record, reason = _record(part)
        if record is None:
            behind = parts[number:]
            if any(_record(later)[0] is not None for later in behind):
                raise FileFormatError(reason, path, number)
            return JournalLines(orjson.loads(parts[0]), trials, good, 1 + len(behind) + bool(rest))
        trials.append((record["trial"], good, len(part)))
        good += len(part) + 1
    return JournalLines(orjson.loads(parts[0]), trials, good, int(bool(rest)))


def _record(line: bytes) -> tuple[dict[str, Any] | None, str]:
    """The trial in a line; None with the reason where there is none."""
    try:
        record = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        return None, f"damaged journal line ({error})"
    if isinstance(record, dict) and isinstance(record.get("trial"), str):
        return record, ""
    return None, "journal line is not a trial"


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _all_of(descriptor: int) -> bytes:
    os.lseek(descriptor, 0, os.SEEK_SET)
    with os.fdopen(os.dup(descriptor), "rb") as file:
        return file.read()


# The records of a journal, read from its file when they are asked for: memory does not grow with a run's trials.

Record = dict[str, Any]
CACHED_BYTES = 2**20  # of lines whose records are kept in memory, those that were asked for last
_FLAGS = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


class JournalRecords(Mapping[str, Record]):
    """Finished trials by id, in the order of the file at `path`; only where each one stands is held in memory.

    They can be read until `close`, also when the file has been removed meanwhile (except on Windows, where it is closed
    first).
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, _FLAGS)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._places: dict[str, tuple[int, int]] = {}
        self._cached: OrderedDict[str, Record] = OrderedDict()
        self._cached_bytes = 0

    def stand(self, trial: str, start: int, size: int) -> None:
        """The record of `trial` is in the `size` bytes from `start` on; it replaces an older one."""
        self._drop(trial)
        self._places[trial] = start, size

    def __getitem__(self, trial: str) -> Record:
        found = self._cached.get(trial)
        if found is not None:
            self._cached.move_to_end(trial)
            return found
        start, size = self._places[trial]
        os.lseek(self._descriptor, start, os.SEEK_SET)
        record: Record = orjson.loads(_read(self._descriptor, size))
        self._cached[trial] = record
        self._cached_bytes += size
        while self._cached_bytes > CACHED_BYTES and len(self._cached) > 1:
            self._drop(next(iter(self._cached)))
        return record

    def _drop(self, trial: str) -> None:
        if self._cached.pop(trial, None) is not None:
            self._cached_bytes -= self._places[trial][1]

    def __contains__(self, trial: object) -> bool:
        return trial in self._places

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} records)"

    def close(self) -> None:
        """Let the file go."""
        self._close()


def _read(descriptor: int, size: int) -> bytes:
    pieces: list[bytes] = []
    while size and (piece := os.read(descriptor, size)):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)

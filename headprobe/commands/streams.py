"""Standard input, output and error that are closed, full or read by nobody any more."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO, cast

from headprobe.errors import FileAccessError


def fill_closed() -> None:
    """Put an empty file in the place of each standard stream that is closed.

    Else the next file that is opened gets its number, and whatever writes to "standard error" writes into that file.
    A closed standard output stays None in `sys` (`refuse_closed_output`).
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open(encoding="utf-8")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115


def refuse_closed_output() -> None:
    """Raise `FileAccessError` when there is no standard output: what a command prints would be lost."""
    if sys.stdout is None:
        raise FileAccessError("standard output is closed: send it to /dev/null to throw it away")


class OutputRefusedError(FileAccessError):
    """Standard output cannot be written: there is no room, or it is open for reading only."""


class NamedOutput:
    """Standard output, whose errors say so: the system names no file when there is no room left for what is printed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream's own; what its encoding lacks is written as an escape."""
        with self._named():
            try:
                return int(self._stream.write(text))
            except UnicodeEncodeError:
                encoding = self._stream.encoding
                return int(self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding)))

    def flush(self) -> None:
        """As the stream's own."""
        with self._named():
            self._stream.flush()

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputRefusedError(f"cannot write to standard output: {error.strerror or error}") from None


@contextmanager
def named_output() -> Iterator[None]:
    """`NamedOutput` in the place of `sys.stdout`, with all written at the end. Raises `OutputRefusedError`."""
    before = sys.stdout
    sys.stdout = cast("TextIO", NamedOutput(before))
    try:
        yield
        sys.stdout.flush()
    except OutputRefusedError:
        let_go(before)
        raise
    finally:
        sys.stdout = before


def let_go(stream: Any) -> None:
    """Send a stream that cannot be written nowhere, so that Python's own flush at the end does not fail on it."""
    try:
        number = stream.fileno()
    except (AttributeError, OSError, ValueError):  # no stream of the system's
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def write_error(line: str) -> None:
    """Write a line to standard error; where that is full or gone, nothing can be said."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        let_go(sys.stderr)

"""Standard input, output and error that are closed, full or read by nobody any more."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

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


def write_out() -> None:
    """Write what standard output still holds. Raises `FileAccessError` with the reason, and `BrokenPipeError`."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        let_go(sys.stdout)
        raise FileAccessError(f"cannot write to standard output: {error.strerror or error}") from None


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
    """Write a line to standard error; where that is full or gone there is nobody to say it to."""
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        let_go(sys.stderr)

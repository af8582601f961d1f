"""The error tree. Every expected failure is one of these; `cli.py` turns it into one line and an exit code.

    HeadprobeError                 1
    ├── OptionError                2   an option's value is out of range
    ├── FileFormatError            3   a needle, haystack, score or journal file is broken
    ├── ModelError                 4   a model cannot be found, loaded or used
    ├── PlanError                  5   the grid of probes cannot be built (lengths, window, haystack)
    ├── NoPassingTrialError        6   the model answered no probe
    ├── NonFiniteError             7   NaN or infinity where a number was needed
    ├── DeviceMemoryError          8   nothing fits on the device, not even one trial
    ├── ResumeError                9   a journal belongs to another plan, or to another process
    ├── OutputExistsError         10   a file would be overwritten
    ├── FileAccessError           11   the system refuses to read or write a file
    └── LostRankError             12   another process of a run under torchrun has ended

Typer itself ends with 2 on unknown options; an interrupt ends with 130, a reader of stdout that is gone with 141, and
an unexpected exception (a bug) with 70.
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path


class HeadprobeError(Exception):
    """Base of all expected failures. The message is one line that quotes the value and the limit."""

    exit_code = 1


class OptionError(HeadprobeError):
    """An option's value is out of range."""

    exit_code = 2


class FileFormatError(HeadprobeError):
    """A file is broken; the message starts with `path:line` as far as they are known."""

    exit_code = 3

    def __init__(self, reason: str, path: Path | str | None = None, line: int | None = None) -> None:
        where = "" if path is None else f"{path}: " if line is None else f"{path}:{line}: "
        super().__init__(where + reason)


class ModelError(HeadprobeError):
    """A model cannot be found, loaded or used."""

    exit_code = 4


class PlanError(HeadprobeError):
    """The grid of probes cannot be built."""

    exit_code = 5


class NoPassingTrialError(HeadprobeError):
    """The model answered no probe, so that no head can be scored."""

    exit_code = 6


class NonFiniteError(HeadprobeError):
    """NaN or infinity where a number was needed."""

    exit_code = 7


class DeviceMemoryError(HeadprobeError):
    """Nothing fits on the device."""

    exit_code = 8


class ResumeError(HeadprobeError):
    """A journal was written for another plan, or another process is writing it."""

    exit_code = 9


class OutputExistsError(HeadprobeError):
    """A file would be overwritten."""

    exit_code = 10


class FileAccessError(HeadprobeError):
    """The system refuses to read or write a file: no permission, no space, a folder in its place."""

    exit_code = 11


class LostRankError(HeadprobeError):
    """Another process of a run under torchrun has ended before its work was done."""

    exit_code = 12


def shown(value: object, limit: int = 60) -> str:
    """`value` as Python writes it, cut to about `limit` characters: what messages quote may be anything.

    >>> shown("x" * 100, 20)
    "'xxxxxxx...xxxxxxxx'"
    """
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 3, limit, limit, limit
    short.maxlist = short.maxtuple = short.maxdict = short.maxset = 4
    text = " ".join(short.repr(value).split())
    return text if len(text) <= 2 * limit else f"{text[: 2 * limit]}..."


def refuse_empty(options: Mapping[str, object]) -> None:
    """Raise `OptionError` for an option that is an empty text: a variable that is not set, or a name that is missing.

    >>> refuse_empty({"--haystack": "essays", "--limit": None})
    """
    for name, value in options.items():
        if isinstance(value, str) and not value.strip():
            raise OptionError(f"{name} is empty: give it a value, or leave it out")

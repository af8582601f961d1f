"""Ctrl-C: one line and exit code 130, from the first moment of the process on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

INTERRUPTED = 130
LINE = "headprobe: interrupted"


class InterruptedRunError(Exception):
    """A command was interrupted whose work so far is kept; the message says how to go on."""


def heed_at_once() -> bool:
    """While modules are loaded nothing is begun that has to be ended in order: an interrupt ends the process at once.

    False, and nothing is changed, where interrupts are ignored (a shell's background job) or another program that runs
    us handles them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, _leave)
    sys.unraisablehook = _leave_if_swallowed
    return True


def heed_in_order() -> None:
    """From here on an interrupt is raised where the program is, so that it can put things in order."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def heed_no_more() -> None:
    """The command is over, the process about to end: an interrupt would only spoil its exit code."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def kept_when_interrupted(hint: str) -> Iterator[None]:
    """Around work that can be taken up again: an interrupt inside raises `InterruptedRunError` with `hint`."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError(hint) from None


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{LINE}\n".encode())
    os._exit(INTERRUPTED)


def _leave_if_swallowed(unraisable: Any) -> None:
    """Python drops what is raised in a finalizer or a callback, such as those of its import locks; not this one."""
    if isinstance(unraisable.exc_value, KeyboardInterrupt):
        _leave(signal.SIGINT, None)
    sys.__unraisablehook__(unraisable)

"""Ctrl-C: one line and exit code 130, from the first moment of the process on.

An interrupt ends the process at once, except inside `Orderly`, where it is raised as `KeyboardInterrupt`. To raise it
everywhere is not enough: while modules are loaded it can be lost in finalizers, import locks and C extensions. This
module is the first that is loaded, so it imports as little as it can.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` would be the largest import of all
if TYPE_CHECKING:
    import signal
    from types import FrameType, TracebackType
    from typing import NoReturn
else:
    import _signal as signal  # what `signal` wraps: there since Python began, while the wrapper loads `enum` first

INTERRUPTED = 130
LINE = "headprobe: interrupted"


class InterruptedRunError(Exception):
    """A command was interrupted and has put things in order; the message, if any, says how to continue."""


class Orderly:
    """Around work that an interrupt must not cut off without putting things in order, such as a run with a journal.

    `hint` says how to continue afterwards. Leaving the block raises `InterruptedRunError` if there was an interrupt,
    also when something inside lost it or made another error of it. A second interrupt ends the process at once.
    """

    def __init__(self, hint: str = "") -> None:
        self._hint = hint
        self._came = False
        self._is_ours = False

    def __enter__(self) -> Orderly:
        self._is_ours = signal.getsignal(signal.SIGINT) is _leave
        if self._is_ours:
            signal.signal(signal.SIGINT, self._raise)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_ours:
            signal.signal(signal.SIGINT, _leave)
        if self._came or isinstance(error, KeyboardInterrupt):
            raise InterruptedRunError(self._hint) from None

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        if self._came:
            _leave(number, frame)
        self._came = True
        raise KeyboardInterrupt


def heed_interrupts() -> bool:
    """From here on an interrupt ends the process at once, with our line.

    False, and nothing is changed, where interrupts are ignored (a shell's background job) or another program that runs
    us handles them.
    """
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return False
    signal.signal(signal.SIGINT, _leave)
    return True


def end_with(code: int) -> int:
    """The command is over, the process about to end: an interrupt would only spoil its exit code.

    An interrupted process ends right here: Python remembers some interrupts and would report a kill, not the code.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if code == INTERRUPTED:
        os._exit(code)
    return code


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    try:
        os.write(2, f"{LINE}\n".encode())
    finally:
        os._exit(INTERRUPTED)

"""Ctrl-C and a scheduler's SIGTERM: one line and exit code 130 or 143, from the first moment of the process on.

A signal ends the process at once, except inside `Orderly`, where it is raised as `KeyboardInterrupt`. To raise it
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

INTERRUPTED, TERMINATED = 130, 143
LINES = {INTERRUPTED: "headprobe: interrupted", TERMINATED: "headprobe: terminated"}
CODES: dict[int, int] = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: TERMINATED}


class InterruptedRunError(Exception):
    """A command was ended by a signal and has put things in order; the message, if any, says how to continue."""

    def __init__(self, hint: str = "", code: int = INTERRUPTED) -> None:
        super().__init__(hint)
        self.code = code


class Orderly:
    """Around work that an interrupt must not cut off without putting things in order, such as a run with a journal.

    `hint` says how to continue afterwards. Leaving the block raises `InterruptedRunError` if there was a signal, also
    when something inside lost it or made another error of it. A second signal ends the process at once.
    """

    def __init__(self, hint: str = "") -> None:
        self._hint = hint
        self._came: int | None = None
        self._ours: list[int] = []

    def __enter__(self) -> Orderly:
        self._ours = [number for number in CODES if signal.getsignal(number) is _leave]
        for number in self._ours:
            signal.signal(number, self._raise)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number in self._ours:
            signal.signal(number, _leave)
        if self._came is not None or isinstance(error, KeyboardInterrupt):
            raise InterruptedRunError(self._hint, CODES[self._came or signal.SIGINT]) from None

    def _raise(self, number: int, frame: FrameType | None) -> NoReturn:
        if self._came is not None:
            _leave(number, frame)
        self._came = number
        raise KeyboardInterrupt


def heed_interrupts() -> bool:
    """From here on an interrupt or SIGTERM ends the process at once, with our line.

    What is ignored (interrupts, in a shell's background job) or handled by another program that runs us is left as it
    is; False where that is both of them.
    """
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    heeded = [number for number, handler in usual.items() if signal.getsignal(number) == handler]
    for number in heeded:
        signal.signal(number, _leave)
    return bool(heeded)


def end_with(code: int) -> int:
    """The command is over, the process about to end: a signal would only spoil its exit code.

    An interrupted process ends right here: Python remembers some interrupts and would report a kill, not the code.
    """
    for number in CODES:
        if signal.getsignal(number) is _leave:
            signal.signal(number, signal.SIG_IGN)
    if code in LINES:
        os._exit(code)
    return code


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    code = CODES[number]
    try:
        os.write(2, f"{LINES[code]}\n".encode())
    finally:
        os._exit(code)

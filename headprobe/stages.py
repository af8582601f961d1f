"""Stages of a run: the seconds that go into loading, prefill, decoding, scoring and writing, each counted once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

LOAD, PREFILL, DECODE, SCORING, WRITE = "load", "prefill", "decode", "scoring", "write"
STAGES = (LOAD, PREFILL, DECODE, SCORING, WRITE)
TOTAL = "total"
Mark = Callable[[str], AbstractContextManager[object]]


class Stages:
    """Seconds of wall time by stage. A stage inside another one is taken out of it, so that no second counts twice.

    `mark`: opened around each stage besides, with its name: what a profiler's trace shows. On a GPU kernels run behind
    the program, so that seconds lie where it waits for them.

    >>> stages = Stages(clock=iter([0.0, 1.0, 3.0, 4.0, 6.0, 10.0]).__next__)
    >>> stages.enter("prefill"), stages.enter("scoring"), stages.leave(), stages.leave()
    (None, None, None, None)
    >>> stages.record()
    {'prefill': 4.0, 'scoring': 1.0, 'total': 10.0}
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._began = clock, clock()
        self._at, self._open = self._began, list[str]()
        self.seconds: dict[str, float] = {}
        self.mark: Mark | None = None

    def enter(self, name: str) -> None:
        """A stage begins."""
        self._charge()
        self._open.append(name)

    def leave(self) -> None:
        """The stage that began last ends."""
        self._charge()
        self._open.pop()

    def move(self, seconds: float, source: str, target: str) -> None:
        """Count `seconds` of the stage `source` as `target`: what a finished call states of itself."""
        taken = min(max(seconds, 0.0), self.seconds.get(source, 0.0))
        self.seconds[source] = self.seconds.get(source, 0.0) - taken
        self.seconds[target] = self.seconds.get(target, 0.0) + taken

    @property
    def elapsed(self) -> float:
        """Seconds since this began."""
        return self._clock() - self._began

    def record(self) -> dict[str, float]:
        """Seconds by stage and, as `total`, all of them with what belongs to no stage; in milliseconds' steps."""
        self._charge()
        known = [name for name in STAGES if name in self.seconds]
        others = [name for name in self.seconds if name not in STAGES]
        found = {name: round(self.seconds[name], 3) for name in [*known, *others]}
        return found | {TOTAL: round(self._at - self._began, 3)}

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            name = self._open[-1]
            self.seconds[name] = self.seconds.get(name, 0.0) + now - self._at
        self._at = now


_CURRENT: ContextVar[Stages | None] = ContextVar("stages", default=None)


def current_stages() -> Stages | None:
    """What counts at the moment; None outside `timed`."""
    return _CURRENT.get()


@contextmanager
def timed() -> Iterator[Stages]:
    """Count the stages of what runs inside; inside another one, that goes on counting."""
    outer = _CURRENT.get()
    if outer is not None:
        yield outer
        return
    token = _CURRENT.set(Stages())
    try:
        made = _CURRENT.get()
        assert made is not None
        yield made
    finally:
        _CURRENT.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Count what runs inside as the stage `name`, where somebody counts. Not around a `yield`."""
    stages = _CURRENT.get()
    if stages is None:
        yield
        return
    with stages.mark(name) if stages.mark is not None else nullcontext():
        stages.enter(name)
        try:
            yield
        finally:
            stages.leave()


def stage_record() -> dict[str, float]:
    """The seconds so far, by stage; empty where nobody counts."""
    stages = _CURRENT.get()
    return {} if stages is None else stages.record()


def move_seconds(seconds: float, source: str, target: str) -> None:
    """As `Stages.move`, where somebody counts."""
    stages = _CURRENT.get()
    if stages is not None:
        stages.move(seconds, source, target)

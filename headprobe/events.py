"""Events of a run: whoever works says what happens, and whoever listens writes it down."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

BEGIN, PLAN, TRIAL, SKIP, RETRY, WRITE, END = "begin", "plan", "trial", "skip", "retry", "write", "end"
Listener = Callable[[str, Mapping[str, Any]], None]

_LISTENERS: ContextVar[tuple[Listener, ...]] = ContextVar("listeners", default=())
_PLACES: ContextVar[Mapping[str, Path]] = ContextVar("places", default={})  # noqa: B039 - never written to


def emit(event: str, **facts: Any) -> None:
    """Something happened: `facts` are what JSON can hold. Nothing is done where nobody listens.

    >>> with listening(lambda event, facts: print(event, dict(facts))):
    ...     emit("trial", trial="reasoning-09@256@0")
    trial {'trial': 'reasoning-09@256@0'}
    """
    for listener in _LISTENERS.get():
        listener(event, facts)


@contextmanager
def listening(*listeners: Listener, places: Mapping[str, Path] | None = None) -> Iterator[None]:
    """Call `listeners` with each event of what runs inside. `places`: files that they write, by what names them in a
    message, so that no output or input of the run may be one of them."""
    heard = _LISTENERS.set((*_LISTENERS.get(), *listeners))
    taken = _PLACES.set({**_PLACES.get(), **(places or {})})
    try:
        yield
    finally:
        _PLACES.reset(taken)
        _LISTENERS.reset(heard)


def listeners_places() -> Mapping[str, Path]:
    """The files of those who listen, by what names them in a message."""
    return _PLACES.get()

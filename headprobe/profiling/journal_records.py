"""The records of a journal, read from its file when they are asked for: memory does not grow with a run's trials."""

from __future__ import annotations

import os
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

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

"""The bytes of a file that a stranger may have made: a plain file, and no more of it than the limit."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from headprobe.errors import FileFormatError

MAX_BYTES = 256 * 2**20
PIECE = 2**20


def file_bytes(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of `path`. Raises `FileFormatError` where it cannot be read, is no plain file (a pipe or a device
    would keep us waiting), or is larger than `max_bytes`."""
    try:
        found = Path(path)
        if found.exists() and not found.is_file() and not found.is_dir():
            raise FileFormatError("is no plain file", path)
        with found.open("rb") as file:
            data = _at_most(file, max_bytes + 1)
    except OSError as error:
        raise FileFormatError(error.strerror or str(error), path) from None
    except ValueError as error:  # a null character in the name
        raise FileFormatError(str(error), repr(str(path))) from None
    if len(data) > max_bytes:
        raise FileFormatError(f"larger than the limit of {max_bytes} bytes", path)
    return data


def _at_most(file: BinaryIO, count: int) -> bytes:
    """The first `count` bytes, taken in pieces: for a limit larger than memory no room is made beforehand."""
    pieces: list[bytes] = []
    while count > 0 and (piece := file.read(min(count, PIECE))):
        pieces.append(piece)
        count -= len(piece)
    return b"".join(pieces)

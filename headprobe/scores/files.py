"""Files: read up to a limit, written completely or not at all, and never one in place of another."""

from __future__ import annotations

import errno
import os
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import BinaryIO, TypeVar

from headprobe.errors import FileAccessError, FileFormatError, OptionError, OutputExistsError
from headprobe.events import WRITE, emit, listeners_places
from headprobe.stages import stage

# The bytes of a file that a stranger may have made: a plain file, and no more of it than the limit.

MAX_BYTES = 256 * 2**20
PIECE = 2**20


def file_bytes(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes:
    """All bytes of `path`. Raises `FileFormatError` where it cannot be read, is not a regular file (a pipe or a device
    would keep us waiting), or is larger than `max_bytes`."""
    try:
        found = Path(path)
        if found.exists() and not found.is_file() and not found.is_dir():
            raise FileFormatError("is not a regular file", path)
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


# Names that lead to one file, however they are spelled.

Named = Mapping[str, Path | str | None]


def refuse_one_place(outputs: Named, inputs: Named | None = None) -> None:
    """Refuse two outputs that are one file, and an output that is also an input: one of them would be lost.

    Both map what a file is called in the message (`-o`, `the journal of the run`) to its path; None stands for a file
    that is not asked for. Links, folders and relative names are followed; names that differ in upper and lower case
    only count as one, since many systems take them for one. Files of those who listen to the run's events are outputs
    too. Raises `OptionError` naming both.

    >>> refuse_one_place({"-o": "a/../b.json", "--dump-prompts": "B.json"})
    Traceback (most recent call last):
    headprobe.errors.OptionError: -o a/../b.json and --dump-prompts B.json are the same file: give each its own name
    """
    written = {what: path for what, path in {**listeners_places(), **outputs}.items() if path is not None}
    for first, second in combinations(written, 2):
        if same_place(written[first], written[second]):
            names = f"{first} {written[first]} and {second} {written[second]}"
            raise OptionError(f"{names} are the same file: give each its own name")
    for source, path in (inputs or {}).items():
        for what, target in written.items():
            if path is not None and same_place(path, target):
                raise OptionError(f"{what} {target} and {source} {path} are the same file: the input would be lost")


def same_place(first: Path | str, second: Path | str) -> bool:
    """Whether both names lead to one file, there or not; upper and lower case are not distinguished.

    >>> same_place("a.json", "./x/../A.json"), same_place("a.json", "b.json")
    (True, False)
    """
    return _key(first) == _key(second)


def _key(path: Path | str) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()


# Files that appear whole or not at all, and the look beforehand at whether they can.

TRIED_BYTES = 4096
LONGEST_NAME = 255  # bytes of a file's name, on nearly every system
Made = TypeVar("Made")


def write_atomically(path: Path | str, data: bytes, overwrite: bool = False) -> Path:
    """Write `data` to `path` by way of a temporary file beside it (fsync, then rename). Makes missing folders.

    Raises `OutputExistsError` where something is there and `overwrite` is false (also when it came up while we
    were writing), `FileAccessError` with the system's reason where the file cannot be written.
    """
    refuse_existing(path, overwrite)
    with stage(WRITE), _naming(path):
        target = _followed(Path(path), overwrite)
        beside = _beside(target)
        try:
            in_folder(target.parent, lambda: _write_synced(beside, data))
            _put(beside, target, overwrite)
        finally:
            _remove(beside)
        _sync_folder(target.parent)
    emit(WRITE, file=str(path), bytes=len(data))
    return Path(path)


def check_place(path: Path | str, overwrite: bool = False) -> None:
    """Find out before long work whether `path` can be written in the end, by writing a small file beside it.

    Nothing stays behind: neither that file nor folders that were made for it. Raises as `write_atomically`.
    """
    refuse_existing(path, overwrite)
    with _naming(path):
        target = _followed(Path(path), overwrite)
        beside = _beside(target)
        made = _missing_folders(target.parent)
        try:
            in_folder(target.parent, lambda: _write_synced(beside, bytes(TRIED_BYTES)))
        finally:
            _remove(beside)
            _remove_empty(made)


def refuse_dash(path: Path | str) -> None:
    """Raise `OptionError` for an output `-`, or a place in a folder of that name."""
    if Path(path).parts[:1] == ("-",):
        raise OptionError("the output - would be a file of that name, and not stdout: name another (--json prints)")


def refuse_existing(path: Path | str, overwrite: bool = False) -> None:
    """Raise `OutputExistsError` when `path` is there and may not be replaced, or is not a regular file.

    `FileAccessError` where the system knows no such name, or does not let us look; `OptionError` for `-`, by which
    others mean stdout.
    """
    refuse_dash(path)
    with _naming(path):
        try:
            os.lstat(path)
        except (FileNotFoundError, NotADirectoryError):
            return
        if not overwrite:
            raise OutputExistsError(_exists(Path(path)))
        if Path(path).exists() and not Path(path).is_file():
            raise OutputExistsError(f"{path} exists and is not a regular file")


def in_folder(folder: Path, act: Callable[[], Made]) -> Made:
    """Make `folder` where it is missing, and do `act` in it; again where another process has just removed it."""
    for _ in range(2):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            return act()
        except FileNotFoundError:
            continue
    folder.mkdir(parents=True, exist_ok=True)
    return act()


_ADDING = os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)


def open_to_add(path: Path, said: str = "") -> int:
    """A descriptor of a file that grows, made where it is missing; `said` goes before its name in a message.

    Raises `OutputExistsError` for what is not a regular file, `FileAccessError`.
    """
    try:
        if path.exists() and not path.is_file():
            raise OutputExistsError(f"{said}{path} exists and is not a regular file")
        return in_folder(path.parent, lambda: os.open(path, _ADDING, 0o666))
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror}") from None


@contextmanager
def _naming(path: Path | str) -> Iterator[None]:
    """The system's refusals as ours, with the file that was to be written: the system often names none."""
    try:
        yield
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {_reason(error, Path(path))}") from None
    except ValueError as error:  # a null character in the name
        raise FileAccessError(f"cannot write {str(path)!r}: {error}") from None


def _reason(error: OSError, path: Path) -> str:
    longest = max(len(os.fsencode(part)) for part in path.parts or ("",))
    if error.errno == errno.ENAMETOOLONG and longest > LONGEST_NAME:
        return f"a name of {longest} bytes is too long, the limit is {LONGEST_NAME}"
    return error.strerror or str(error)


def _exists(path: Path) -> str:
    return f"{path} already exists; --overwrite replaces it"


def _followed(path: Path, overwrite: bool) -> Path:
    if not (overwrite and path.is_symlink()):
        return path
    target = Path(os.path.realpath(path))
    if target.is_symlink():  # it leads in a circle
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    return target


def _beside(target: Path) -> Path:
    """A temporary name of a few letters: the target's own may be as long as the system allows."""
    mark = sha256(os.fsencode(target.name)).hexdigest()[:8]
    return target.with_name(f".headprobe-{mark}.{os.getpid()}.tmp")


def _remove(temporary: Path) -> None:
    if os.path.lexists(temporary):
        temporary.unlink(missing_ok=True)


def _missing_folders(folder: Path) -> list[Path]:
    """`folder` and those above it that are not there, the innermost first."""
    return [each for each in (folder, *folder.parents) if not os.path.lexists(each)]


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # it was never made, or another process has put something into it
            return


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    with os.fdopen(descriptor, "wb", buffering=0) as file:
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]
        os.fsync(file.fileno())


def _put(source: Path, target: Path, overwrite: bool) -> None:
    if overwrite:
        source.replace(target)
        return
    try:
        os.link(source, target)  # unlike rename, this fails when the target has come up meanwhile
    except FileExistsError:
        raise OutputExistsError(_exists(target)) from None
    except OSError:  # a file system without hard links
        refuse_existing(target)
        source.replace(target)


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

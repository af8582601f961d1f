"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from headprobe.errors import FileAccessError, OutputExistsError


def write_atomically(path: Path | str, data: bytes, overwrite: bool = False) -> Path:
    """Write `data` to `path` by way of a temporary file beside it (fsync, then rename). Makes missing folders.

    Raises `OutputExistsError` where something is there and `overwrite` is false (also when it came up while we
    were writing), `FileAccessError` with the system's reason where the file cannot be written.
    """
    target = Path(path)
    refuse_existing(target, overwrite)
    if overwrite and target.is_symlink():
        target = target.resolve()
    beside = target.with_name(f".{target.name[:200]}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            _write_synced(beside, data)
            _put(beside, target, overwrite)
        finally:
            beside.unlink(missing_ok=True)
        _sync_folder(target.parent)
    except OSError as error:
        raise FileAccessError(f"cannot write {path}: {error.strerror or error}") from None
    return Path(path)


def refuse_existing(path: Path | str, overwrite: bool = False) -> None:
    """Raise `OutputExistsError` when `path` is there and may not be replaced, or is no plain file."""
    if os.path.lexists(path) and not overwrite:
        raise OutputExistsError(_exists(Path(path)))
    if Path(path).exists() and not Path(path).is_file():
        raise OutputExistsError(f"{path} is there and is no plain file")


def _exists(path: Path) -> str:
    return f"{path} is there already; --overwrite replaces it"


def _write_synced(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
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

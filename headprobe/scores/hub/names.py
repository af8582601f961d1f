"""Names of repositories and of the files in them: what may be asked for, and what may be written here."""

from __future__ import annotations

import os
import re
from pathlib import Path

from headprobe.errors import FileAccessError, FileFormatError, OptionError

MAX_NAME = 200
MAX_FOLDERS = 4
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_FORBIDDEN = re.compile(r'[\\:*?"<>|]')
_DEVICES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


def check_repository(name: str) -> str:
    """`name`, if it can be that of a repository: USER/NAME. Raises `OptionError` quoting it.

    >>> check_repository("lena/head-scores")
    'lena/head-scores'
    """
    if not name:
        raise OptionError("which repository? Say --repo USER/NAME")
    if _REPOSITORY.fullmatch(name) is None or "--" in name or ".." in name or name.endswith((".git", "-", ".")):
        rule = "USER/NAME of letters, digits, '-', '_' and '.', each at most 96 long, without '--' and '..'"
        raise OptionError(f"--repo is {name!r:.80}; a repository is called {rule}")
    return name


def check_file_name(name: str) -> str:
    """`name`, if it can only lie inside the folder it is put in, on every system.

    At most 200 bytes and 4 folders deep; no part that is empty, begins with a dot or ends with a dot or space; no
    backslash, colon, wildcard or character that cannot be printed; no name of a device. Raises `FileFormatError`.

    >>> check_file_name("llama/demo--r2.json")
    'llama/demo--r2.json'
    """
    reason = name_fault(name)
    if reason is not None:
        raise FileFormatError(reason)
    return name


def name_fault(name: str) -> str | None:
    """Why `check_file_name` refuses `name`, None where it does not."""
    fault = _fault(name)
    return None if fault is None else f"the file name {name!r:.80} {fault}: it is not written here"


def place_in(folder: Path, name: str) -> Path:
    """Where the file called `name` goes in `folder`.

    Raises `FileFormatError` for a name that could leave it, `FileAccessError` where a link inside leads out of it.
    """
    target = folder / check_file_name(name)
    if not Path(os.path.realpath(target)).is_relative_to(os.path.realpath(folder)):
        raise FileAccessError(f"{target} leads out of {folder} by a symbolic link")
    return target


def _fault(name: str) -> str | None:
    parts = name.split("/")
    if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME:
        return f"has more than {MAX_NAME} bytes"
    if len(parts) > MAX_FOLDERS + 1:
        return f"lies more than {MAX_FOLDERS} folders deep"
    if not name.isprintable() or _FORBIDDEN.search(name):
        return "holds a character that is not allowed"
    if any(not part or part.startswith((".", " ")) or part.endswith((".", " ")) for part in parts):
        return "has a part that is empty, or begins or ends with a dot or a space"
    return "is that of a device" if any(_DEVICES.fullmatch(part) for part in parts) else None

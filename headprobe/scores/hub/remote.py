"""Look into a dataset repository of the hub and fetch files from it: every name and answer has its limits."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import constants, get_session, get_token
from huggingface_hub.errors import OfflineModeIsEnabled

from headprobe._version import __version__
from headprobe.errors import FileAccessError, FileFormatError, HeadprobeError, OptionError
from headprobe.scores import strict_json

# Names of repositories and of the files in them: what may be asked for, and what may be written here.

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
        raise OptionError("which repository? Give --repo USER/NAME")
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


# Look into a dataset repository of the hub and fetch files from it: every answer has a limit in bytes and time.

MAX_LISTING = 16 * 2**20
SILENCE_S = 30.0
SLOWEST = 16 * 2**10  # bytes a second
_COMMIT = re.compile(r"[0-9a-f]{40}")
_UNKNOWN = {"RepoNotFound", "RevisionNotFound", "EntryNotFound"}


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: `size` in bytes, `blob_id` its git hash, `sha256` where it lies in the large storage."""

    name: str
    size: int
    blob_id: str | None = None
    sha256: str | None = None

    def holds(self, data: bytes) -> bool:
        """Whether this file consists of `data`, as far as the hub stated its hash; without a hash it does not."""
        if len(data) != self.size:
            return False
        if self.sha256 is not None:
            return hashlib.sha256(data).hexdigest() == self.sha256
        return self.blob_id is not None and git_blob_id(data) == self.blob_id


@dataclass(frozen=True)
class RemoteRepository:
    """A dataset repository at one commit (`revision`)."""

    repo_id: str
    revision: str
    private: bool
    files: tuple[RemoteFile, ...]

    def find(self, name: str) -> RemoteFile | None:
        """The file called `name`, or None."""
        return next((file for file in self.files if file.name == name), None)


def git_blob_id(data: bytes) -> str:
    """The hash by which git knows these bytes.

    >>> git_blob_id(b"")
    'e69de29bb2d1d6434b8b29ae775ad8c2e48c5391'
    """
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def endpoint() -> str:
    """The hub's address: `HF_ENDPOINT`, else the public one."""
    return str(constants.ENDPOINT)


def web_page(repo_id: str) -> str:
    """The address of the repository's page."""
    return f"{endpoint()}/datasets/{repo_id}"


def is_logged_in() -> bool:
    """Whether there is a token for the hub (`hf auth login`, or `HF_TOKEN`)."""
    return bool(get_token())


def find_repository(repo_id: str, revision: str | None = None) -> RemoteRepository | None:
    """The repository with its files at `revision` (branch, tag or commit; default: the main branch).

    None where there is no such repository, or none that the token may see. Raises `OptionError` for an impossible
    name or a revision that does not exist, `FileAccessError` when the hub cannot be reached or refuses,
    `FileFormatError` for an answer that makes no sense.
    """
    check_repository(repo_id)
    at = "" if revision is None else f"/revision/{quote(revision, safe='')}"
    try:
        answer = _get(f"{endpoint()}/api/datasets/{repo_id}{at}?blobs=true", MAX_LISTING, f"the listing of {repo_id}")
    except _NotThereError as error:
        if error.code == "RevisionNotFound":
            raise OptionError(f"{repo_id} has no revision {revision!r:.80}") from None
        return None
    return _repository(repo_id, answer)


def fetch(repository: RemoteRepository, file: RemoteFile, max_bytes: int) -> bytes:
    """The content of `file`, checked against the size and hash that the listing states.

    Raises `FileFormatError` when it has more than `max_bytes` bytes or other content than was stated, `FileAccessError`
    when the hub cannot be reached, refuses, or sends less than 16 KiB a second.
    """
    check_file_name(file.name)
    what = f"{repository.repo_id}/{file.name}"
    check_size(file, max_bytes, what)
    url = f"{web_page(repository.repo_id)}/resolve/{quote(repository.revision, safe='')}/{quote(file.name)}"
    try:
        data = _get(url, file.size, what)
    except _NotThereError:
        raise FileAccessError(f"{what} is gone from the hub") from None
    if not file.holds(data) and (file.blob_id or file.sha256 or len(data) != file.size):
        raise FileFormatError("the hub sent other bytes than it announced (size or hash differ)", what)
    return data


def check_size(file: RemoteFile, max_bytes: int, what: str) -> None:
    """Raise `FileFormatError` when the file is larger than the limit."""
    if file.size > max_bytes:
        raise FileFormatError(f"has {file.size:,} bytes, the limit is {max_bytes:,}", what)


# -- one bounded request --------------------------------------------------------------------------------------------


class _NotThereError(Exception):
    """The hub says that repository, revision or file does not exist; `code` is its word for which."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def _get(url: str, max_bytes: int, what: str) -> bytes:
    with _told_in_one_line(what), get_session().stream(
        "GET", url, headers=_headers(), timeout=SILENCE_S, follow_redirects=True
    ) as response:  # fmt: skip
        _check_status(response, what)
        return _read(response.iter_raw(2**16), max_bytes, what)


def _headers() -> dict[str, str]:
    token = get_token()
    plain = {"user-agent": f"headprobe/{__version__}", "accept-encoding": "identity"}
    return plain | ({"authorization": f"Bearer {token}"} if token else {})


def _read(chunks: Iterator[bytes], max_bytes: int, what: str) -> bytes:
    started, data = time.monotonic(), bytearray()
    for chunk in chunks:
        data += chunk
        if len(data) > max_bytes:
            raise FileFormatError(f"the hub sends more than the {max_bytes:,} bytes that are allowed", what)
        if time.monotonic() - started > SILENCE_S + len(data) / SLOWEST:
            raise FileAccessError(f"{what}: the hub sends less than {SLOWEST:,} bytes a second: given up")
    return bytes(data)


def _check_status(response: Any, what: str) -> None:
    status, code = int(response.status_code), str(response.headers.get("x-error-code", ""))
    if status < 300:
        return
    if status in (401, 404) and (code in _UNKNOWN or not code):
        raise _NotThereError(code)
    reasons = {
        401: "the hub does not accept the token (`hf auth login`)",
        403: "its conditions have to be accepted on its page first" if code == "GatedRepo" else "the hub forbids it",
        429: "the hub asks to come back later (too many requests)",
    }
    raise FileAccessError(f"{what}: {reasons.get(status, f'the hub answered {status}')}")


@contextmanager
def _told_in_one_line(what: str) -> Iterator[None]:
    """Errors of the HTTP client, whose classes differ between its versions, as ours."""
    try:
        yield
    except (HeadprobeError, _NotThereError):
        raise
    except Exception as error:
        raise FileAccessError(f"{what}: {unreachable(error)}") from error


def unreachable(error: Exception) -> str:
    """Why the hub gave no answer, in words."""
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so the hub is not contacted"
    return f"{endpoint()} cannot be reached ({type(error).__name__}: {' '.join(str(error).split())[:160]})"


# -- the listing ----------------------------------------------------------------------------------------------------


def _repository(repo_id: str, answer: bytes) -> RemoteRepository:
    try:
        record = strict_json.parse(answer)
        files = tuple(_file(entry) for entry in record.get("siblings") or ())
        revision = _text(record["sha"])
        if _COMMIT.fullmatch(revision) is None:
            raise ValueError(f"the commit {revision!r:.60}")
    except (FileFormatError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the hub's listing of {repo_id} makes no sense: {error!s:.120}") from None
    return RemoteRepository(repo_id, revision, bool(record.get("private")), files)


def _file(entry: Any) -> RemoteFile:
    large = entry.get("lfs") or {}
    size = large.get("size", entry.get("size"))
    if type(size) is not int or size < 0:
        raise ValueError(f"a file of {size!r:.40} bytes")
    blob = None if large else entry.get("blobId")  # of a large file, git knows a pointer only
    return RemoteFile(_text(entry["rfilename"]), size, blob, large.get("sha256"))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is not text")
    return value

"""What a push would change in a repository: put together and looked at before anything goes out."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256

from headprobe.errors import FileFormatError, OptionError, OutputExistsError
from headprobe.scores.hub.card import CARD, merge_card
from headprobe.scores.hub.names import check_file_name
from headprobe.scores.hub.remote import RemoteRepository, fetch

MAX_CARD = 4 * 2**20
_PUSHED = re.compile(r"[\w.,+=@-]+\.json")
NEW, CHANGED, SAME = "new", "changed", "same"


@dataclass(frozen=True)
class Upload:
    """A file as it will be in the repository; `change` is `new`, `changed` or `same`."""

    name: str
    data: bytes
    change: str

    @property
    def sha256(self) -> str:
        """The hash of the content."""
        return sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Parcel:
    """All files of a push. `parent` is the commit it builds on, None where the repository is not there yet."""

    repo_id: str
    uploads: tuple[Upload, ...]
    parent: str | None

    @property
    def changes(self) -> tuple[Upload, ...]:
        """Those that the repository does not hold yet in this form."""
        return tuple(upload for upload in self.uploads if upload.change != SAME)


def check_score_name(name: str) -> str:
    """`name` if a score file can be pushed under it. Raises `OptionError` or `FileFormatError`.

    Stricter than `check_file_name`: the name comes into Markdown and shell commands of the card.
    """
    if _PUSHED.fullmatch(name) is None:
        raise OptionError(f"cannot push {name!r:.80}: need a name of letters, digits and '_.,+=@-' that ends in .json")
    return check_file_name(name)


def pack(
    repo_id: str, files: Iterable[tuple[str, bytes]], section: str, remote: RemoteRepository | None, overwrite: bool
) -> Parcel:
    """The `files` (the score file first, then its picture) and the card, compared with what the repository holds.

    Raises `OutputExistsError` when it holds another file of such a name and `overwrite` is false, `FileFormatError`
    when its card is no text. Fetches the card, and nothing else.
    """
    uploads = [_upload(name, data, remote) for name, data in files]
    other = [upload.name for upload in uploads if upload.change == CHANGED]
    if other and uploads[0].change != SAME and not overwrite:
        raise OutputExistsError(f"{repo_id} holds another {other[0]} already; --overwrite replaces it")
    card = merge_card(_card_of(remote), section, uploads[0].name, repo_id)
    uploads.append(_upload(CARD, card.encode("utf-8"), remote))
    return Parcel(repo_id, tuple(uploads), None if remote is None else remote.revision)


def _upload(name: str, data: bytes, remote: RemoteRepository | None) -> Upload:
    there = None if remote is None else remote.find(name)
    return Upload(name, data, NEW if there is None else SAME if there.holds(data) else CHANGED)


def _card_of(remote: RemoteRepository | None) -> str | None:
    there = None if remote is None else remote.find(CARD)
    if remote is None or there is None:
        return None
    try:
        return fetch(remote, there, MAX_CARD).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FileFormatError(f"byte {error.start} is not UTF-8", f"{remote.repo_id}/{CARD}") from None

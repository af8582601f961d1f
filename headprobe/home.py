"""Names of files and folders that begin with `~`."""

from __future__ import annotations

import os
from pathlib import Path


def in_home(name: Path | str) -> Path:
    """`name` with a home folder in the place of `~` or `~user`; as it stands where there is no such user.

    So do shells. `Path.expanduser` ends in a `RuntimeError` there.

    >>> in_home("~no-such-user/a.json").name, str(in_home("a/~b"))
    ('a.json', 'a/~b')
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111

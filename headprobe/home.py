"""Where files lie: the user's own folders, and those that come with the package, in a checkout and in a wheel."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from headprobe.errors import FileFormatError

# Names of files and folders that begin with `~`.


def in_home(name: Path | str) -> Path:
    """`name` with a home folder in the place of `~` or `~user`; as it stands where there is no such user.

    So do shells. `Path.expanduser` ends in a `RuntimeError` there.

    >>> in_home("~no-such-user/a.json").name, str(in_home("a/~b"))
    ('a.json', 'a/~b')
    """
    return Path(os.path.expanduser(name))  # noqa: PTH111


# Where the needle sets and haystacks that come with the package lie: in a checkout and in an installed wheel.

_PACKAGE = Path(str(resources.files("headprobe"))).resolve()


def shipped_folder(kind: str) -> Path:
    """The folder of the shipped `needles` or `haystacks`.

    A wheel carries them as `headprobe/_data/<kind>`; in a checkout they lie beside the package. Raises
    `FileFormatError` when neither is there (a broken installation).
    """
    places = (_PACKAGE / "_data" / kind, _PACKAGE.parent / kind)
    for place in places:
        if place.is_dir():
            return place
    raise FileFormatError(f"the shipped {kind} are missing: neither {places[0]} nor {places[1]} exists; reinstall")


def shipped_needle_sets() -> dict[str, Path]:
    """The shipped needle sets by name: retrieval, reasoning and nonliteral come first, in this order."""
    order = ("retrieval", "reasoning", "nonliteral")
    found = {path.stem: path for path in sorted(shipped_folder("needles").glob("*.jsonl"))}
    return {name: found[name] for name in (*order, *found) if name in found}


def shipped_haystacks() -> dict[str, Path]:
    """The folders of the shipped haystacks by name, sorted."""
    folders = sorted(path for path in shipped_folder("haystacks").iterdir() if path.is_dir())
    return {path.name: path for path in folders if any(path.glob("*.txt"))}

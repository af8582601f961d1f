"""Names that lead to one file, however they are spelled."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

from headprobe.errors import OptionError

Named = Mapping[str, Path | str | None]


def refuse_one_place(outputs: Named, inputs: Named | None = None) -> None:
    """Refuse two outputs that are one file, and an output that is also an input: one of them would be lost.

    Both map what a file is called in the message (`-o`, `the journal of the run`) to its path; None stands for a file
    that is not asked for. Links, folders and relative names are followed; names that differ in upper and lower case
    only count as one, since many systems take them for one. Raises `OptionError` naming both.

    >>> refuse_one_place({"-o": "a/../b.json", "--dump-prompts": "B.json"})
    Traceback (most recent call last):
    headprobe.errors.OptionError: -o a/../b.json and --dump-prompts B.json are one file: give each a name of its own
    """
    written = {what: path for what, path in outputs.items() if path is not None}
    for first, second in combinations(written, 2):
        if same_place(written[first], written[second]):
            names = f"{first} {written[first]} and {second} {written[second]}"
            raise OptionError(f"{names} are one file: give each a name of its own")
    for source, path in (inputs or {}).items():
        for what, target in written.items():
            if path is not None and same_place(path, target):
                raise OptionError(f"{what} {target} and {source} {path} are one file: the input would be lost")


def same_place(first: Path | str, second: Path | str) -> bool:
    """Whether both names lead to one file, there or not; upper and lower case are not told apart.

    >>> same_place("a.json", "./x/../A.json"), same_place("a.json", "b.json")
    (True, False)
    """
    return _key(first) == _key(second)


def _key(path: Path | str) -> str:
    return unicodedata.normalize("NFC", os.path.realpath(path)).casefold()

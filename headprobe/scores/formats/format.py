"""What a score format is, and what it is given to read and to write."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headprobe.geometry import ModelGeometry
from headprobe.scores import strict_json
from headprobe.scores.fields import MAX_HEADS
from headprobe.scores.formats.table import Contents, FaultError

if TYPE_CHECKING:
    from headprobe.scores.any_scores import AnyScores

MAX_CONTAINERS = 4_000_000
_KEY_IN_TEXT = re.compile(rb'"\d{1,5}-\d{1,5}"\s*:')
_TABLES_OF_A_FILE = 4  # by head: scores, and what else an envelope tells of each


@dataclass(frozen=True, eq=False)
class Source:
    """The bytes of a file, and where they were read from."""

    path: Path
    data: bytes

    @cached_property
    def json(self) -> Any:
        """The parsed value of a file that is a JSON object, None for any other file.

        Raises `FileFormatError` for broken JSON, `FaultError` for more of it than any score file has.
        """
        if self.data.lstrip()[:1] != b"{":
            return None
        containers = self.data.count(b"[") + self.data.count(b"{")
        if containers > MAX_CONTAINERS:  # two bytes of text, and sixty of memory
            raise FaultError("too-long", f"{containers} arrays and objects, need at most {MAX_CONTAINERS}")
        _check_keys(self.data)
        return strict_json.parse(self.data, self.path)


@dataclass(frozen=True)
class Target:
    """What the source lacks: the model's name and geometry, the method; how query heads become KV heads (`how`:
    `mean` or `max`), and `config`, the fields of Duo's `config.json` that are known. Without `knows_width` the
    geometry's `head_dim` is a placeholder."""

    model: str | None = None
    geometry: ModelGeometry | None = None
    method: str | None = None
    how: str = "mean"
    config: Mapping[str, Any] | None = None
    knows_width: bool = True


@dataclass(frozen=True)
class Converted:
    """The bytes of each file by name (the first is the table itself; a single file has the name ""), and in words what
    was lost and what had to be made up."""

    files: Mapping[str, bytes]
    lost: tuple[str, ...]


def _nothing(path: Path) -> tuple[Path, ...]:
    return ()


@dataclass(frozen=True)
class Format:
    """A score format.

    `name`: as in `--to` and in output; `about`: what kind of file it is, in two words; `family`: what pictures call it.
    `fits` says whether a file is of this format, by its content; `read` gives what it holds, and raises `FaultError`
    where that cannot be. `write` gives the files and says what is lost; None where the format is only read, and
    `OptionError` from it where the target lacks something. `table_name`: the file that stands for a whole folder, where
    the format has one; `beside`: the other files that are read with the file at a path.
    """

    name: str
    about: str
    family: str
    fits: Callable[[Source], bool]
    read: Callable[[Source], Contents]
    write: Callable[[AnyScores, Target], Converted] | None = None
    table_name: str | None = None
    beside: Callable[[Path], tuple[Path, ...]] = _nothing


def _check_keys(data: bytes) -> None:
    """Before JSON is parsed: refuse far more `layer-head` keys than a table has heads."""
    most = _TABLES_OF_A_FILE * MAX_HEADS
    if data.count(b":") > most:
        count = sum(1 for _ in _KEY_IN_TEXT.finditer(data))
        if count > most:
            raise FaultError("wrong-shape", f"{count} scores by layer-head key, need at most {MAX_HEADS} heads")

"""What a score format is: what it is given to read and to write, what it hands on, and the checks all share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headprobe.geometry import ModelGeometry
from headprobe.scores import strict_json
from headprobe.scores.head_scores import Floats, HeadScores
from headprobe.scores.provenance import UNKNOWN, MethodFacts
from headprobe.scores.strict_json import LARGEST_SCORE, MAX_HEADS

if TYPE_CHECKING:
    from headprobe.scores.any_scores import AnyScores


# What a reader hands on, the fault it reports, and the checks of numbers and shapes that all readers share.

MAX_TRIALS = 20_000
QUERY, KV = "query", "kv"
SHARES = MethodFacts(0.0, 1.0)  # what scores of this family of methods can be, whichever of them made a file
RANKING_NOTE = "the file ranks heads and holds no scores; the points only say the order"
_NUMBER = re.compile(r"-?\d{1,400}(\.\d{0,400})?([eE][+-]?\d{1,4})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)


class FaultError(ValueError):
    """A file that cannot be read as head scores; `check` is the name under which `scores validate` lists it."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file of some format holds; the fields are those of `AnyScores`.

    `mean` and `trial_scores` become read-only. Raises `FaultError` for a mean that is no table of finite numbers, and
    for trials of another shape.
    """

    heads: str
    mean: Floats
    trial_scores: Floats | None = None
    method: str | None = None
    model: str | None = None
    facts: MethodFacts = UNKNOWN
    is_ranking: bool = False
    notes: tuple[str, ...] = ()
    native: HeadScores | None = None
    geometry: ModelGeometry | None = None

    def __post_init__(self) -> None:
        if self.heads not in (QUERY, KV):
            raise FaultError("wrong-shape", f"heads is {self.heads!r:.40}, need {QUERY} or {KV}")
        mean, trials = checked_table(self.mean), self.trial_scores
        if trials is not None and (trials.ndim != 3 or trials.shape[1:] != mean.shape):
            told = f"the trials have the shape {list(trials.shape)}"
            raise FaultError("wrong-shape", f"{told}, need [trials, {mean.shape[0]}, {mean.shape[1]}]")
        if trials is not None and not np.isfinite(trials).all():
            raise FaultError("not-finite", "a trial's score is not a finite number")
        for name, table in (("mean", mean), ("trial_scores", trials)):
            if table is not None:
                table.setflags(write=False)
                object.__setattr__(self, name, table)

    @property
    def bound(self) -> float | None:
        """The largest score that its method can give, None where unknown."""
        return self.facts.most


def checked_number(value: Any, where: str) -> float:
    """`value` as float. Raises `FaultError` for what is no number, is not finite, or lies beyond `LARGEST_SCORE`."""
    if type(value) not in (int, float):
        raise FaultError("not-a-number", f"{where} is {_shown(value)}, need a number")
    if value != value or value in (float("inf"), float("-inf")):
        raise FaultError("not-finite", f"{where} is {value}, need a finite number")
    if not -LARGEST_SCORE <= value <= LARGEST_SCORE:
        raise FaultError("out-of-range", f"{where} is {_shown(value)}, need at most {LARGEST_SCORE:g} in size")
    return float(value)


def number_in(text: str) -> float | None:
    """The number that `text` spells as programs write it (`-12`, `0.5`, `5.0e-01`), and nothing else; None for what is
    none. Python's own `float` also takes digits grouped by `_`, of other scripts, and spaces around them.

    >>> number_in("5.0e-01"), number_in("1_0"), number_in(" 1"), number_in("+1")
    (0.5, None, None, None)
    """
    return float(text) if _NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text) else None


def check_heads(count: int) -> None:
    """Raise `FaultError` for more heads than a table may have."""
    if count > MAX_HEADS:
        raise FaultError("wrong-shape", f"{count} heads, need at most {MAX_HEADS}")


def checked_table(table: Any) -> Floats:
    """`table` as float64 `[layers, heads]`. Raises `FaultError` as `checked_number`, and for no or too many heads."""
    made = np.asarray(table, dtype=np.float64)
    if made.ndim != 2 or made.size == 0:
        raise FaultError("wrong-shape", f"the scores have the shape {list(made.shape)}, need [layers, heads]")
    check_heads(made.size)
    bad = np.argwhere(~(np.abs(made) <= LARGEST_SCORE))
    if len(bad):
        layer, head = map(int, bad[0])
        checked_number(float(made[layer, head]), f"the score of head {layer}-{head}")
    return made


def _shown(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'an array' if isinstance(value, list) else 'an object'} of {len(value)}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > 10**20:
        return "an integer of more than 20 digits"
    return f"{value!r:.60}"


# What a score format is, and what it is given to read and to write.

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
class StatedFacts:
    """What the source lacks: the model's name and geometry, the method; how query heads become KV heads (`gqa`:
    `mean` or `max`), and `config`, the fields of Duo's `config.json` that are known. Without `knows_width` the
    geometry's `head_dim` is a placeholder."""

    model: str | None = None
    geometry: ModelGeometry | None = None
    method: str | None = None
    gqa: str = "mean"
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
    `OptionError` from it where too little is stated. `table_name`: the file that stands for a whole folder, where
    the format has one; `beside`: the other files that are read with the file at a path.
    """

    name: str
    about: str
    family: str
    fits: Callable[[Source], bool]
    read: Callable[[Source], Contents]
    write: Callable[[AnyScores, StatedFacts], Converted] | None = None
    table_name: str | None = None
    beside: Callable[[Path], tuple[Path, ...]] = _nothing


def _check_keys(data: bytes) -> None:
    """Before JSON is parsed: refuse far more `layer-head` keys than a table has heads."""
    most = _TABLES_OF_A_FILE * MAX_HEADS
    if data.count(b":") > most:
        count = sum(1 for _ in _KEY_IN_TEXT.finditer(data))
        if count > most:
            raise FaultError("wrong-shape", f"{count} scores by layer-head key, need at most {MAX_HEADS} heads")

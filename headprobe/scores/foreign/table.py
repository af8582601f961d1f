"""What a reader of a foreign file hands on, and the fault it reports."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from headprobe.scores.fields import LARGEST_SCORE, MAX_HEADS
from headprobe.scores.head_scores import Floats

MAX_TRIALS = 20_000
QUERY, KV = "query", "kv"
RANKING_NOTE = "the file ranks heads and holds no scores; the points only say the order"
_NUMBER = re.compile(r"-?\d{1,400}(\.\d{0,400})?([eE][+-]?\d{1,4})?", re.ASCII)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf(inity)?)", re.ASCII | re.IGNORECASE)


class FaultError(ValueError):
    """A file that cannot be read as head scores; `check` is the name under which `scores validate` lists it."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check


@dataclass(frozen=True, eq=False)
class ForeignTable:
    """Scores as a foreign file gives them; the fields are those of `AnyScores`."""

    heads: str
    mean: Floats
    trial_scores: Floats | None = None
    method: str | None = None
    model: str | None = None
    bound: float | None = 1.0
    is_ranking: bool = False
    notes: tuple[str, ...] = ()


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

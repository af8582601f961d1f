"""Whether a finished trial, read back from a journal, is what a run writes: its fields, types and shapes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from headprobe.profiling.estimators.estimator import NEEDLES, Estimator, prompts_of
from headprobe.profiling.journal import Check
from headprobe.profiling.journal_file import Record

CHOICES = ("answer", "distractor", "other")


@dataclass(frozen=True)
class RecordCheck:
    """The check of one plan's records, which `trial_record` makes.

    `trials`: ids of the plan; `methods`: names of the estimators; `shape`: the model's layers and query heads;
    `is_answered`: whether its trials ask something, else they say how much the model foretold.
    """

    trials: Collection[str]
    methods: tuple[str, ...]
    shape: tuple[int, int]
    is_answered: bool = True

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a record that is wrong."""
        if record["trial"] not in self.trials:
            raise ValueError("the plan has no such trial")
        if "skipped" in record:
            text(record, "skipped")
            return
        text(record, "response")
        share(record, "f1")
        share(record, "rouge1_recall")
        share(record, "deciding_words")
        one_of(record, "chose", CHOICES)
        whole(record, "num_steps", 1)
        if not self.is_answered:
            share(record, "copied")
        else:
            whole(record, "num_read", record["num_steps"])
        tables = field(record, "scores")
        for method in self.methods:
            _check_table(method, tables.get(method) if isinstance(tables, dict) else None, self.shape)


def record_check(trials: Mapping[str, Collection[str]], chosen: Sequence[Estimator], shape: tuple[int, int]) -> Check:
    """What a trial in a journal must be: one of `trials`, given by kind of prompts, with scores by each of the `chosen`
    methods of that kind; `shape`: the model's layers and query heads."""
    checks = [
        RecordCheck(
            ids, tuple(e.name for e in chosen if prompts_of(e) == kind), shape, is_answered=kind == NEEDLES
        )
        for kind, ids in trials.items()
    ]  # fmt: skip

    def check(record: Record) -> None:
        next((c for c in checks if record["trial"] in c.trials), checks[0])(record)

    return check


def field(record: Mapping[str, Any], name: str) -> Any:
    """The field, which may be null. Raises `ValueError` where it is missing."""
    if name not in record:
        raise ValueError(f"the field {name!r} is missing")
    return record[name]


def text(record: Mapping[str, Any], name: str) -> None:
    """Raise `ValueError` unless the field is a text."""
    _want(record, name, isinstance(field(record, name), str), "a text")


def one_of(record: Mapping[str, Any], name: str, words: Collection[Any]) -> None:
    """Raise `ValueError` unless the field is one of `words`."""
    value = field(record, name)
    _want(record, name, isinstance(value, str | bool | None) and value in words, f"one of {', '.join(map(str, words))}")


def whole(record: Mapping[str, Any], name: str, least: int) -> None:
    """Raise `ValueError` unless the field is a whole number of at least `least`."""
    value = field(record, name)
    _want(record, name, type(value) is int and value >= least, f"a whole number of at least {least}")


def number(record: Mapping[str, Any], name: str, most: float | None = None) -> None:
    """Raise `ValueError` unless the field is a number of at least 0 and at most `most`."""
    told = "a number of at least 0" if most is None else f"a number from 0 to {most:g}"
    _want(record, name, is_number(field(record, name), 0.0, most), told)


def share(record: Mapping[str, Any], name: str) -> None:
    """Raise `ValueError` unless the field is a number from 0 to 1."""
    number(record, name, 1.0)


def is_number(value: Any, least: float | None = None, most: float | None = None) -> bool:
    """Whether it is a finite number within both limits; True and False are none.

    >>> is_number(0.5, 0, 1), is_number(float("nan")), is_number(True)
    (True, False, False)
    """
    if type(value) not in (int, float) or not isfinite(value):
        return False
    return (least is None or value >= least) and (most is None or value <= most)


def _want(record: Mapping[str, Any], name: str, is_right: bool, told: str) -> None:
    if not is_right:
        raise ValueError(f"its {name} is {record[name]!r:.60}, need {told}")


def _check_table(method: str, table: Any, shape: tuple[int, int]) -> None:
    layers, heads = shape
    rows = table if isinstance(table, list) else []
    if len(rows) != layers or not all(isinstance(row, list) and len(row) == heads for row in rows):
        raise ValueError(f"its scores by {method} are no table of {layers} layers x {heads} heads")
    wrong = next((value for row in rows for value in row if not is_number(value)), None)
    if any(not is_number(value) for row in rows for value in row):
        raise ValueError(f"its scores by {method} hold {wrong!r:.60}, need finite numbers")

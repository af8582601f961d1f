"""Reading typed fields out of parsed JSON, with errors that name the field."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

LARGEST_SCORE = 1e6
MAX_HEADS = 2**16  # of a table: far more than any model has
_NAMES = {dict: "an object", list: "an array", str: "a text", bool: "true or false", int: "a whole number"}


class Fields:
    """One JSON object; `where` is its dotted name. Every getter raises `ValueError` naming the field.

    >>> Fields({"a": 3, "b": None}, "model").integer("a")
    3
    >>> Fields({"a": -3}, "model").integer("a")
    Traceback (most recent call last):
    ValueError: model.a is -3, need at least 0
    """

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise ValueError(f"{where or 'the file'} is {_seen(value)}, need an object")
        self._values: Mapping[str, Any] = value
        self._where = where
        self._read: set[str] = set()

    def name(self, key: str) -> str:
        """The field's dotted name."""
        return f"{self._where}.{key}" if self._where else key

    def has(self, key: str) -> bool:
        """Whether the field is there; counts as read."""
        self._read.add(key)
        return key in self._values

    def everything(self) -> dict[str, Any]:
        """All fields, in the order of the file."""
        return dict(self._values)

    def rest(self) -> dict[str, Any]:
        """The fields that nobody has read."""
        return {key: value for key, value in self._values.items() if key not in self._read}

    def get(self, key: str, kind: type) -> Any:
        """The field, of exactly this JSON type."""
        if not self.has(key):
            raise ValueError(f"{self.name(key)} is missing")
        value = self._values[key]
        if type(value) is not kind:
            raise ValueError(f"{self.name(key)} is {_seen(value)}, need {_NAMES[kind]}")
        return value

    def block(self, key: str) -> Fields:
        """A nested object."""
        return Fields(self.get(key, dict), self.name(key))

    def text(self, key: str) -> str:
        """A string."""
        value: str = self.get(key, str)
        return value

    def optional_text(self, key: str) -> str | None:
        """A string; None where it is null or absent."""
        return self.text(key) if self.has(key) and self._values[key] is not None else None

    def flag(self, key: str) -> bool:
        """A boolean."""
        value: bool = self.get(key, bool)
        return value

    def integer(self, key: str, least: float = 0) -> int:
        """A whole number of at least `least`; 3.0 counts as 3, as in JSON Schema."""
        if self.has(key) and type(self._values[key]) is float and self._values[key].is_integer():
            return Fields({key: int(self._values[key])}, self._where).integer(key, least)
        value: int = self.get(key, int)
        if value < least:
            raise ValueError(f"{self.name(key)} is {value}, need at least {least}")
        return value

    def number(self, key: str, least: float, most: float) -> float:
        """A number in `[least, most]`; whole numbers come back as float."""
        if not self.has(key):
            raise ValueError(f"{self.name(key)} is missing")
        value = self._values[key]
        if type(value) not in (int, float):
            raise ValueError(f"{self.name(key)} is {_seen(value)}, need a number")
        if not least <= value <= most:
            raise ValueError(f"{self.name(key)} is {value}, need {least:g} to {most:g}")
        return float(value)

    def table(self, key: str, shape: tuple[int, int]) -> NDArray[np.float64]:
        """Numbers `[layers][heads]` of exactly this shape."""
        return table(self.get(key, list), shape, self.name(key))

    def numbers(self, key: str, most: float) -> None:
        """Check that the field is an array of numbers in `[0, most]`."""
        for index, value in enumerate(self.get(key, list)):
            Fields({f"{key}[{index}]": value}, self._where).number(f"{key}[{index}]", 0, most)


def table(rows: Any, shape: tuple[int, int], where: str) -> NDArray[np.float64]:
    """`rows` as float64 `[layers, heads]`. Raises `ValueError` for another shape or anything
    but numbers of at most `LARGEST_SCORE`."""
    layers, heads = shape
    if type(rows) is not list or len(rows) != layers:
        raise ValueError(f"{where} is {_seen(rows)}, need an array of {layers} layers")
    for layer, row in enumerate(rows):
        if type(row) is not list or len(row) != heads:
            raise ValueError(f"{where}[{layer}] is {_seen(row)}, need an array of {heads} heads")
        if not {type(item) for item in row} <= {int, float}:
            head = next(i for i, item in enumerate(row) if type(item) not in (int, float))
            raise ValueError(f"{where}[{layer}][{head}] is {_seen(row[head])}, need a number")
    made = np.array(rows, dtype=np.float64)
    if np.abs(made).max() > LARGEST_SCORE:
        raise ValueError(f"{where} holds a score beyond +-{LARGEST_SCORE:g}")
    return made


def _seen(value: Any) -> str:
    if isinstance(value, list):
        return f"an array of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value!r:.60}"

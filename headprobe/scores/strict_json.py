"""JSON that a stranger may have written: strict to parse, canonical to write, and its fields read by type."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from headprobe.errors import FileFormatError, NonFiniteError

# JSON that a stranger may have written: no duplicate keys, no NaN, bounded nesting; and its canonical form.

MAX_DEPTH = 32
_LARGEST_INTEGER = 2**64
_EXACT_INTEGER = 2.0**53


def parse(data: bytes, path: Path | str | None = None) -> Any:
    """The value of strict JSON in UTF-8. Raises `FileFormatError` with path, line (where known) and reason."""
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_object)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FileFormatError(f"byte {error.start} is not UTF-8", path, line) from None
    except json.JSONDecodeError as error:
        raise FileFormatError(f"not JSON: {error.msg} (column {error.colno})", path, error.lineno) from None
    except RecursionError:
        raise FileFormatError(f"nested deeper than {MAX_DEPTH} levels", path) from None
    except ValueError as error:  # a duplicate key, or an integer of thousands of digits
        raise FileFormatError(str(error).split(";")[0], path) from None


def digest(value: Any) -> str:
    """sha256 of the canonical form: sorted keys, no spaces, and 1.0 as 1, since other programs save it so.

    Raises `NonFiniteError`, naming the field, for NaN and infinity, `ValueError` for what JSON cannot hold and
    for more than `MAX_DEPTH` levels.

    >>> digest({"b": 1.0, "a": [0.5]}) == sha256(b'{"a":[0.5],"b":1}').hexdigest()
    True
    """
    try:
        plain = _canonical(value, 0)
    except OverflowError:
        where, number = next((w, n) for w, n in _numbers(value, "") if not isfinite(n))
        raise NonFiniteError(f"{where} is {number}; numbers must be finite") from None
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return sha256(text.encode("utf-8")).hexdigest()
    except UnicodeEncodeError as error:
        raise ValueError(f"text with the lone surrogate {text[error.start]!r}") from None


def layout(payload: dict[str, Any]) -> str:
    """`payload` as JSON for eyes and for diff: fields of a block, rows of a table and trials on lines of their own."""
    fields = [f"  {_line(key)}: {_expanded(value, 1)}" for key, value in payload.items()]
    return "{\n" + ",\n".join(fields) + "\n}\n"


def _expanded(value: Any, level: int) -> str:
    pad, end = "  " * (level + 1), "  " * level
    if isinstance(value, dict) and value and level == 1:
        items = [f"{pad}{_line(key)}: {_expanded(item, level + 1)}" for key, item in value.items()]
        return "{\n" + ",\n".join(items) + f"\n{end}}}"
    if isinstance(value, list) and value and isinstance(value[0], list | dict):
        rows = [pad + (_expanded(row, level + 1) if _is_table(row) else _line(row)) for row in value]
        return "[\n" + ",\n".join(rows) + f"\n{end}]"
    return _line(value)


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], list)


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice[:60]!r} occurs twice in one object")
    return made


def _canonical(value: Any, depth: int) -> Any:
    kind = type(value)
    if kind is float:
        if not isfinite(value):
            raise OverflowError
        return int(value) if value.is_integer() and abs(value) < _EXACT_INTEGER else value
    if kind is str or kind is bool or value is None:
        return value
    if kind is int:
        if abs(value) > _LARGEST_INTEGER:
            raise ValueError("an integer is larger than 2**64")
        return value
    if depth >= MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    if kind is list:
        return [_canonical(item, depth + 1) for item in value]
    if kind is dict and all(type(key) is str for key in value):
        return {key: _canonical(item, depth + 1) for key, item in value.items()}
    raise ValueError(f"JSON cannot hold {value!s:.60} ({kind.__module__}.{kind.__qualname__})")


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, item in value.items():
            name = key if key.isidentifier() else f"{key!r:.60}"
            yield from _numbers(item, f"{where}.{name}" if where else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{where}[{index}]")
    elif isinstance(value, float):
        yield where, value


# Reading typed fields out of parsed JSON, with errors that name the field.

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

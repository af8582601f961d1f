"""JSON that a stranger may have written: no duplicate keys, no NaN, bounded nesting; and its canonical form."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from hashlib import sha256
from math import isfinite
from pathlib import Path
from typing import Any

from headprobe.errors import FileFormatError, NonFiniteError

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
        raise ValueError(f"the key {twice[:60]!r} comes twice in one object")
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

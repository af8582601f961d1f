"""DuoAttention: `full_attention_heads.tsv`, a row of KV heads a layer, beside `config.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from headprobe.errors import FileFormatError
from headprobe.scores import strict_json
from headprobe.scores.fields import LARGEST_SCORE, MAX_HEADS
from headprobe.scores.file_bytes import file_bytes
from headprobe.scores.foreign.table import KV, FaultError, ForeignTable, checked_number, checked_table, number_in
from headprobe.scores.head_scores import Floats

TABLE_NAME = "full_attention_heads.tsv"
CONFIG_NAME = "config.json"
_CONFIG_BYTES = 2**20


def is_duo(data: bytes) -> bool:
    """Whether the first line is made of numbers with tabs (or, for a single KV head, of one number)."""
    line = data[:65536].split(b"\n", 1)[0].strip()
    try:
        return bool(line) and all(float(cell.decode("ascii")) is not None for cell in line.split(b"\t"))
    except ValueError:
        return False


def read_duo(data: bytes, path: Path) -> ForeignTable:
    """The table in `data`; the model comes from the `config.json` beside `path`, where there is one.

    Raises `FaultError` for rows of different length and cells that are no finite number.
    """
    if data.count(b"\t") + data.count(b"\n") > 2 * MAX_HEADS:
        raise FaultError("wrong-shape", f"more than {MAX_HEADS} heads")
    rows = [_row(line, index) for index, line in enumerate(data.splitlines()) if line.strip()]
    widths = {len(row) for row in rows}
    if len(widths) > 1:
        odd = next(index for index, row in enumerate(rows) if len(row) != len(rows[0]))
        raise FaultError("missing-heads", f"layer {odd} has {len(rows[odd])} KV heads, layer 0 has {len(rows[0])}")
    config, note = duo_config(path)
    name = config.get("model_name")
    model = name.removeprefix("models/") if isinstance(name, str) else None
    return ForeignTable(KV, checked_table(rows), method="duo", model=model, notes=note)


def duo_config(path: Path) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The `config.json` beside the table (empty where there is none), and a note where it cannot be used."""
    beside = path.parent / CONFIG_NAME
    if not beside.is_file():
        return {}, ()
    try:
        config = strict_json.parse(file_bytes(beside, _CONFIG_BYTES), beside)
    except FileFormatError as error:
        return {}, (f"bad-config: {error}",)
    return (config, ()) if isinstance(config, dict) else ({}, (f"bad-config: {beside} holds no object",))


def duo_bytes(table: Floats) -> bytes:
    """`[L, G]` as Duo's tsv: numbers with 18 digits behind the point, tabs between.

    >>> duo_bytes(np.array([[0.5, 1.0]]))
    b'5.000000000000000000e-01\\t1.000000000000000000e+00\\n'
    """
    lines = ("\t".join(f"{value:.18e}" for value in row) for row in np.asarray(table).tolist())
    return ("\n".join(lines) + "\n").encode("ascii")


def _row(line: bytes, layer: int) -> list[float]:
    return [_cell(cell, layer, column) for column, cell in enumerate(line.split(b"\t"))]


def _cell(cell: bytes, layer: int, column: int) -> float:
    text = cell[:1000].decode("ascii", "replace")
    value = number_in(text)
    if value is None:
        shown = ascii(text[:40])
        raise FaultError("not-a-number", f"line {layer + 1}, column {column + 1} is {shown}, need a number")
    if not -LARGEST_SCORE <= value <= LARGEST_SCORE:
        checked_number(value, f"line {layer + 1}, column {column + 1}")
    return value

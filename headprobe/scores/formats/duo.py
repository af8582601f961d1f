"""DuoAttention: `full_attention_heads.tsv`, a row of KV heads per layer, beside `config.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.errors import FileFormatError
from headprobe.scores import strict_json
from headprobe.scores.any_scores import AnyScores, fitting, grouped, query_heads
from headprobe.scores.files import file_bytes
from headprobe.scores.formats.format import (
    KV,
    SHARES,
    Contents,
    Converted,
    FaultError,
    Format,
    StatedFacts,
    checked_number,
    checked_table,
    number_in,
)
from headprobe.scores.head_scores import Floats
from headprobe.scores.strict_json import LARGEST_SCORE, MAX_HEADS

TABLE_NAME = "full_attention_heads.tsv"
CONFIG_NAME = "config.json"
WINDOWS = {"sink_size": 128, "recent_size": 256}
_CONFIG_BYTES = 2**20


def is_duo(data: bytes) -> bool:
    """Whether the first line is made of numbers with tabs (or, for a single KV head, of one number)."""
    line = data[:65536].split(b"\n", 1)[0].strip()
    try:
        return bool(line) and all(float(cell.decode("ascii")) is not None for cell in line.split(b"\t"))
    except ValueError:
        return False


def read_duo(data: bytes, path: Path) -> Contents:
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
    return Contents(KV, checked_table(rows), method="duo", model=model, facts=SHARES, notes=note)


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


def to_duo(scores: AnyScores, stated: StatedFacts) -> Converted:
    """Duo's table of KV heads, with its config: the source's own where it is Duo's, and `stated.config`."""
    told = []
    mean = scores.mean
    if scores.heads != "kv":
        geometry = fitting(scores, stated)
        mean = grouped(query_heads(scores, geometry)[0], geometry.num_key_value_heads, stated.gqa)
        told.append(
            f"lost: single query heads; each KV head has the {stated.gqa} of the {geometry.group_size} that share it"
        )
    if scores.trial_scores is not None:
        told.append("lost: the trials and everything known about them")
    if mean.max() > 1.0 or mean.min() < 0.0:
        told.append(
            f"scores from {mean.min():.4g} to {mean.max():.4g} where Duo's lie between 0 and 1; kept as they are"
        )
    own = duo_config(scores.path)[0] if scores.format == DUO.name else {}
    config = {"model_name": stated.model or scores.model or "unknown", **WINDOWS, **own, **(stated.config or {})}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return Converted({TABLE_NAME: duo_bytes(mean), CONFIG_NAME: text.encode("utf-8")}, tuple(told))


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


DUO = Format(
    name="duo",
    about="tsv",
    family="DuoAttention pattern",
    fits=lambda source: is_duo(source.data),
    read=lambda source: read_duo(source.data, source.path),
    write=to_duo,
    table_name=TABLE_NAME,
    beside=lambda path: (path.parent / CONFIG_NAME,),
)

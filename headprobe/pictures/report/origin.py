"""Where a file comes from, as names and values that a reader can go through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headprobe.pictures.wording import printable
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import HeadScores

LONGEST_VALUE = 400
MOST_ENTRIES = 60

Block = tuple[str, list[tuple[str, str]]]


def provenance_blocks(scores: AnyScores) -> list[Block]:
    """Titled blocks of names and values: the file, then what a native file tells of model, method, probes, machine."""
    file = [
        ("Name", printable(scores.path.name, LONGEST_VALUE)),
        ("Format", scores.family),
        ("SHA-256", scores.sha256),
    ]
    file += [("Model", printable(scores.model, LONGEST_VALUE))] if scores.model and scores.native is None else []
    file += [("Method", printable(scores.method, LONGEST_VALUE))] if scores.method and scores.native is None else []
    if scores.geometry is not None and scores.native is None:
        file.append(("KV heads a layer", str(scores.geometry.num_key_value_heads)))
    file += [("Note", printable(note, LONGEST_VALUE)) for note in scores.notes]
    return [("File", file), *([] if scores.native is None else _native_blocks(scores.native))]


def _native_blocks(scores: HeadScores) -> list[Block]:
    came, geometry = scores.provenance, scores.geometry
    size = {
        "layers": geometry.num_hidden_layers, "query heads": geometry.num_attention_heads,
        "KV heads": geometry.num_key_value_heads, "head dim": geometry.head_dim,
    }  # fmt: skip
    method = {"name": scores.method.name, "version": scores.method.version, "formula": scores.method.formula}
    blocks: list[tuple[str, Mapping[str, Any]]] = [
        ("Model", {**_told(came.model), **size}),
        ("Tokenizer", {} if came.tokenizer is None else _told(came.tokenizer)),
        ("Method", {**method, **scores.method.parameters}),
        ("Probes", came.probes),
        ("Environment", {"written": came.created_at, **came.environment}),
    ]
    return [(title, flat(values)) for title, values in blocks if values]


def _told(block: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(block).items() if name != "extra" and value is not None}


def flat(values: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested JSON as dotted names and short texts.

    >>> flat({"gate": {"metric": "f1", "threshold": 0.5}, "lengths": [512, 1024], "limit": None})
    [('gate metric', 'f1'), ('gate threshold', '0.5'), ('lengths', '512, 1024'), ('limit', 'none')]
    """
    if isinstance(values, Mapping) and values:
        entries = [entry for key, value in values.items() for entry in flat(value, f"{name} {_word(key)}".strip())]
        return entries[:MOST_ENTRIES]
    return [(name, _short(values))]


def _word(key: str) -> str:
    return printable(str(key), 60).replace("_", " ")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(_short(item) for item in value[:MOST_ENTRIES]), LONGEST_VALUE) or "none"
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return printable(f"{value:.10g}" if isinstance(value, float) else str(value), LONGEST_VALUE)

"""QRHead: YAML with `attn_head_set: "13-18,13-21,..."`, a ranking of the best heads without scores.

Only the few lines of that file are understood, by hand: no YAML parser, so no tags, anchors or aliases.
"""

from __future__ import annotations

import re

import numpy as np

from headprobe.scores.formats.format import QUERY, RANKING_NOTE, Contents, FaultError, Format
from headprobe.scores.strict_json import MAX_HEADS

_FIELD = re.compile(
    r"^(?P<quote>[\"']?)(?P<key>[A-Za-z_]\w{0,60})(?P=quote)[ \t]*:(?=[ \t\n]|$)[ \t]*(?P<value>[^\n]*)$",
    re.MULTILINE | re.ASCII,
)
_QUOTED = re.compile(r"""(?:"([^"\\]*)"|'([^']*)')(?:[ \t]*|[ \t]+#.*)""")
_HEAD = re.compile(r"(0|[1-9]\d{0,4})-(0|[1-9]\d{0,4})", re.ASCII)


def is_qrhead(data: bytes) -> bool:
    """Whether a line starts with `attn_head_set:`."""
    return data.startswith(b"attn_head_set") or b"\nattn_head_set" in data


def read_qrhead(data: bytes) -> Contents:
    """The ranking as points: the first of k heads gets k, the last 1, all others 0. The shape is the smallest that
    holds all heads named; it is the model's own shape only by chance.

    Raises `FaultError` for no or broken heads, and for a head or a key that comes twice.

    >>> read_qrhead(b'attn_head_set: "1-0,0-1"').mean.tolist()
    [[0.0, 1.0], [2.0, 0.0]]
    """
    fields = _fields(_text(data))
    heads = _heads(fields.get("attn_head_set", ""))
    shape = max(layer for layer, _ in heads) + 1, max(head for _, head in heads) + 1
    if shape[0] * shape[1] > MAX_HEADS:
        raise FaultError("wrong-shape", f"{shape[0]} x {shape[1]} heads, need at most {MAX_HEADS}")
    points = np.zeros(shape)
    for rank, (layer, head) in enumerate(heads):
        points[layer, head] = len(heads) - rank
    note = f"ranking-only: {RANKING_NOTE}"
    model = fields.get("model_name_or_path") or fields.get("model_base_class") or None
    return Contents(QUERY, points, method="qrhead", model=model, is_ranking=True, notes=(note,))


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise FaultError("unreadable", f"byte {error.start} is not UTF-8") from None


def _fields(text: str) -> dict[str, str]:
    fields: dict[str, str] = {}
    for found in _FIELD.finditer(text):
        key, line = found["key"], text.count("\n", 0, found.start()) + 1
        if key in fields:
            raise FaultError("repeated-key", f"line {line}: the key {key!r} occurs twice")
        fields[key] = _scalar(found["value"], line)
    return fields


def _scalar(value: str, line: int) -> str:
    """A YAML value on one line: quoted, or up to a comment."""
    value = value.strip(" \t")
    if value[:1] in ('"', "'"):
        found = _QUOTED.fullmatch(value)
        if found is None:
            raise FaultError("unreadable", f"line {line}: {value[:40]!r} is not a quoted text on one line")
        return found[1] or found[2] or ""
    return re.split(r"(?:^|[ \t])#", value, maxsplit=1)[0].strip()


def _heads(text: str) -> list[tuple[int, int]]:
    heads = []
    for item in filter(None, (part.strip(" \t") for part in text.split(","))):
        found = _HEAD.fullmatch(item)
        if found is None:
            raise FaultError("bad-key", f"attn_head_set holds {item[:40]!r}, need layer-head, as in '13-18'")
        heads.append((int(found[1]), int(found[2])))
    if not heads:
        raise FaultError("missing-heads", 'attn_head_set names no head, need at least one, as in "13-18,13-21"')
    if len(set(heads)) != len(heads):
        twice = next(head for index, head in enumerate(heads) if head in heads[:index])
        raise FaultError("repeated-head", f"attn_head_set names {twice[0]}-{twice[1]} twice")
    return heads


QRHEAD = Format(
    name="qrhead",
    about="YAML",
    family="QRHead ranking",
    fits=lambda source: is_qrhead(source.data) and b"\0" not in source.data[:64],  # which an archive has, and no text
    read=lambda source: read_qrhead(source.data),
)

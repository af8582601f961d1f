"""The native score file `headprobe/1`: one JSON file, complete in itself, safe to open from a stranger."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from headprobe.errors import FileFormatError, HeadprobeError
from headprobe.scores import strict_json
from headprobe.scores.atomic_file import refuse_existing, write_atomically
from headprobe.scores.file_bytes import MAX_BYTES, file_bytes
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.payload import MAJOR_VERSION, SCHEMA, from_payload, to_payload

_OUTSIDE_ID = ("id", "created_at", "environment")


def write_score_file(
    path: Path | str, scores: HeadScores, overwrite: bool = False, with_trial_scores: bool = True
) -> Path:
    """Write `scores` atomically and return the path. The same scores give the same bytes apart from the fields
    `created_at` and `environment`.

    Raises `OutputExistsError` when the file is there and `overwrite` is false, `NoPassingTrialError` when there is
    no score to tell, `NonFiniteError` for NaN or infinity, `FileFormatError` for a field that readers would refuse.
    """
    refuse_existing(path, overwrite)
    return write_atomically(path, score_file_bytes(scores, with_trial_scores), overwrite)


def score_file_bytes(scores: HeadScores, with_trial_scores: bool = True) -> bytes:
    """What `write_score_file` writes. Raises as it does."""
    blocks = to_payload(scores, with_trial_scores)
    created = scores.provenance.created_at or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    payload = {"schema": SCHEMA, "id": "", "created_at": created} | blocks
    try:
        payload["id"] = _digest(payload)
        strict_json.digest(payload["environment"])
        from_payload(payload)
    except ValueError as error:
        raise FileFormatError(f"these scores cannot be written: {error}") from None
    return strict_json.layout(payload).encode("utf-8")


def read_score_file(path: Path | str, max_bytes: int = MAX_BYTES) -> HeadScores:
    """Read a native score file and check all of it: version, id, types, shapes, and that the tables fit together.

    Raises `FileFormatError` with the path, the line or field, and the reason, whatever the file holds.
    """
    return scores_from(strict_json.parse(file_bytes(path, max_bytes), path), path)


def scores_from(payload: Any, path: Path | str) -> HeadScores:
    """The scores in a parsed native file, checked as `read_score_file` does; `path` is for messages only."""
    try:
        _check_version(payload)
        strict_json.digest(payload)
        scores = from_payload(payload)
        _check_id(payload)
    except FileFormatError:
        raise
    except (ValueError, HeadprobeError) as error:
        raise FileFormatError(str(error), path) from None
    return scores


def holds(path: Path | str, scores: HeadScores, with_trial_scores: bool = True) -> bool:
    """Whether the file at `path` is what `write_score_file` would write, apart from date and environment."""
    try:
        payload = strict_json.parse(file_bytes(path), path)
    except FileFormatError:
        return False
    wanted = strict_json.parse(score_file_bytes(scores, with_trial_scores), path)["id"]
    return isinstance(payload, dict) and payload.get("id") == wanted


def load_scores(path: Path | str) -> HeadScores:
    """The head scores in a file; today of the native format only. Raises `FileFormatError`."""
    return read_score_file(path)


def newest_score_file(folder: Path | str = "scores") -> Path:
    """The `.json` file in `folder` that was changed last (of equal times the last by name).

    Raises `FileFormatError` when there is none.
    """
    found = [file for file in Path(folder).glob("*.json") if file.is_file() and not file.name.startswith(".")]
    if not found:
        raise FileFormatError(f"no score file in {folder}/; `headprobe score` makes one")
    return max(found, key=lambda file: (file.stat().st_mtime_ns, file.name))


def schema_text() -> str:
    """The JSON Schema (2020-12) of the score file, as it lies beside this module, for printing."""
    return files("headprobe.scores").joinpath("score_file.schema.json").read_text(encoding="utf-8")


def score_file_schema() -> dict[str, Any]:
    """The schema, parsed.

    >>> score_file_schema()["properties"]["schema"]
    {'const': 'headprobe/1'}
    """
    schema: dict[str, Any] = json.loads(schema_text())
    return schema


def _digest(payload: dict[str, Any]) -> str:
    return strict_json.digest({key: value for key, value in payload.items() if key not in _OUTSIDE_ID})


def _check_version(payload: Any) -> None:
    schema = payload.get("schema") if isinstance(payload, dict) else None
    found = re.fullmatch(r"headprobe/([1-9]\d{0,3})", schema) if isinstance(schema, str) else None
    if found is None:
        told = "" if schema is None else f" (its schema is {schema!r:.60})"
        raise ValueError(f"not a headprobe score file{told}")
    if int(found[1]) > MAJOR_VERSION:
        raise ValueError(f"written as {schema}, this headprobe reads up to {SCHEMA}: a newer headprobe is needed")


def _check_id(payload: dict[str, Any]) -> None:
    stated, found = payload.get("id"), _digest(payload)
    if stated != found:
        raise ValueError(f"the id {stated!r:.24} is not that of the content ({found[:12]}...): changed or damaged")

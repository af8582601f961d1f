"""The JSON Schema (2020-12) of the score file, shipped beside this module."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any


def schema_text() -> str:
    """The schema as it lies in the file, for printing."""
    return files(__package__ or "headprobe.scores").joinpath("score_file.schema.json").read_text(encoding="utf-8")


def score_file_schema() -> dict[str, Any]:
    """The schema, parsed.

    >>> score_file_schema()["properties"]["schema"]
    {'const': 'headprobe/1'}
    """
    schema: dict[str, Any] = json.loads(schema_text())
    return schema

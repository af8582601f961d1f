"""Rotary embeddings whose frequencies change with the length of what is read."""

from __future__ import annotations

from typing import Any

MOVING = ("dynamic", "longrope")  # they compare the positions of a pass with a limit


def moving_rope(model: Any) -> str | None:
    """The kind of rotary embedding of `model` whose frequencies depend on the length of a pass; None where none does.

    Keys that were computed in a shorter pass are then rotated by other frequencies than those of a longer one, and
    "dynamic" ones keep the frequencies of the longest pass so far until a short one comes.
    """
    given = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [part.get("rope_type") for part in (given, *given.values()) if isinstance(part, dict)]
    return next((kind for kind in kinds if kind in MOVING), None)

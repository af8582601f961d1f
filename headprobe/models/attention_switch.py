"""Run a model with another attention function for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headprobe.errors import ModelError


@contextmanager
def switched_attention(model: Any, name: str, consequence: str = "") -> Iterator[None]:
    """Switch `model` to the attention function registered as `name` inside the block; put its own back afterwards.

    Raises `ModelError`, which ends in `consequence`, for a model that does not go through transformers' attention
    interface.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        if model.config._attn_implementation != name:
            raise ModelError(f"{type(model).__name__} does not use transformers' attention interface{consequence}")
        yield
    finally:
        model.set_attn_implementation(before)

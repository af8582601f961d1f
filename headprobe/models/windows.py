"""How many tokens a model can see: its positions, and what the scaling of its rotary embeddings makes of them."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite
from typing import Any

from headprobe.errors import ModelError, shown

SANE_LENGTH = 10**9  # tokens; tokenizers without a limit state 1e30
LOCAL = ("sliding_attention", "chunked_attention", "linear_attention")  # kinds of layers that set no limit

# With these kinds of scaling `max_position_embeddings` often is the length before it, as cards and transformers'
# documentation ask for. With llama3, longrope and the others it is the length that the model was trained to.
SCALED = ("linear", "dynamic", "yarn")
LONG_ALREADY = ("gemma3",)  # states 131,072 with a linear factor of 8, and was trained on 32,768


def config_window(config: Any) -> int | None:
    """Tokens that a text config stands for; None where it states none.

    Scaling by "linear", "dynamic" and "yarn" makes it `original_max_position_embeddings x factor`, if that is more than
    `max_position_embeddings` (which also is what counts as original where that is not stated); by "llama3", "longrope"
    and others it is `max_position_embeddings`. Understands `rope_parameters` and the older `rope_scaling`, flat or one
    for each kind of layer, of which those that see the whole context count. Raises `ModelError` for what is no number.

    >>> from types import SimpleNamespace
    >>> yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    >>> config_window(SimpleNamespace(max_position_embeddings=40960, rope_parameters=yarn))
    131072
    """
    stated = _length(getattr(config, "max_position_embeddings", None), "max_position_embeddings")
    if stated is None or str(getattr(config, "model_type", "")).startswith(LONG_ALREADY):
        return stated
    return min((_scaled(stated, rope, config) for rope in _ropes(config)), default=stated)


def tokenizer_window(tokenizer: Any | None) -> int | None:
    """The tokenizer's `model_max_length`; None where it states none. Raises `ModelError` for what is no number."""
    limit = getattr(tokenizer, "model_max_length", None)
    if limit is None or limit == inf or (_is_number(limit) and (limit == 0 or limit >= SANE_LENGTH)):
        return None
    if not _is_number(limit) or limit < 1 or limit != int(limit):
        raise ModelError(
            f"model_max_length in tokenizer_config.json is {shown(limit)}, need a whole number of at least 1"
        )
    return int(limit)


def _length(value: Any, name: str) -> int | None:
    if value is None or (_is_number(value) and isinstance(value, int) and value >= SANE_LENGTH):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} in config.json is {shown(value)}, need a whole number of at least 1")
    return value


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The scalings of the layers that see the whole context; of all where none does. Layers without any give none."""
    name = "rope_parameters" if getattr(config, "rope_parameters", None) else "rope_scaling"
    given = getattr(config, name, None) or {}
    if not isinstance(given, dict):
        raise ModelError(f"{name} in config.json is {shown(given)}, need an object")
    if not any(isinstance(part, dict) for part in given.values()):
        yield given
        return
    kinds = set(getattr(config, "layer_types", None) or ())
    parts = {kind: part for kind, part in given.items() if isinstance(part, dict) or part is None}
    parts = {kind: part for kind, part in parts.items() if kind in kinds} or parts
    wide = {kind: part for kind, part in parts.items() if kind not in LOCAL} or parts
    yield from (part or {} for part in wide.values())


def _scaled(stated: int, rope: dict[str, Any], config: Any) -> int:
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind not in SCALED or factor is None:
        return stated
    name = "original_max_position_embeddings"
    original = _length(rope.get(name, getattr(config, name, None)), name) or stated
    if not _is_number(factor) or not 0 < factor * original < SANE_LENGTH:
        raise ModelError(f"the factor of {kind} scaling in config.json is {shown(factor)}, need a number of at least 1")
    return max(stated, int(factor * original))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or isfinite(value))
    )

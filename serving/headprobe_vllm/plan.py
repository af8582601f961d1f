"""The plan: which KV heads keep everything, what the others keep, and the block sizes of their two caches."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

SCHEMA = "headprobe-serve-plan/1"
PREFILLS = ("dense", "streaming")


class PlanError(ValueError):
    """A plan that cannot be used: the message says what is wrong and what is allowed."""


@dataclass(frozen=True)
class ServePlan:
    """What `headprobe serve-plan` writes.

    `full_heads`: for each layer the KV heads that keep everything, rising. The others keep the first `sinks` and the
    last `window` tokens. `prefill`: "dense" lets every prompt token see all before it, as headprobe's `duo` reads a
    prompt, and drops what is not kept when the prompt has been read; "streaming" lets all tokens of those heads see
    sinks and window only, whatever the chunk. `full_block_size` and `streaming_block_size`: tokens in a block of either
    cache; `sinks` is a multiple of the latter and `window` at least as large, so that the blocks of a request can be
    laid end to end with whole sinks in the middle (`rows.py`).
    """

    num_kv_heads: int
    full_heads: tuple[tuple[int, ...], ...]
    sinks: int
    window: int
    full_block_size: int
    streaming_block_size: int
    prefill: str = "dense"

    def __post_init__(self) -> None:
        if self.prefill not in PREFILLS:
            raise PlanError(f"prefill is {self.prefill!r}, known are {', '.join(PREFILLS)}")
        for name in ("num_kv_heads", "full_block_size", "streaming_block_size"):
            if getattr(self, name) < 1:
                raise PlanError(f"{name} is {getattr(self, name)}, need at least 1")
        if self.sinks < 0 or self.sinks % self.streaming_block_size:
            raise PlanError(
                f"{self.sinks} sinks are no multiple of the {self.streaming_block_size} tokens in a streaming block"
            )
        if self.window < self.streaming_block_size:
            raise PlanError(
                f"a window of {self.window} tokens is shorter than a streaming block of {self.streaming_block_size}"
            )
        for layer, heads in enumerate(self.full_heads):
            if list(heads) != sorted(set(heads)) or (heads and not 0 <= heads[0] <= heads[-1] < self.num_kv_heads):
                raise PlanError(
                    f"layer {layer}: full heads {list(heads)} must be rising numbers from 0 to {self.num_kv_heads - 1}"
                )

    @property
    def num_layers(self) -> int:
        """Decoder layers."""
        return len(self.full_heads)

    def streaming_heads(self, layer: int) -> tuple[int, ...]:
        """The KV heads of `layer` that keep sinks and window only, rising."""
        return tuple(head for head in range(self.num_kv_heads) if head not in self.full_heads[layer])

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides what a model computes."""
        return sha256(repr(self).encode()).hexdigest()

    @property
    def visible(self) -> int:
        """Tokens that a query behind sinks and window sees: these and itself."""
        return self.sinks + self.window + 1


def read_plan(path: str | Path) -> ServePlan:
    """The plan in the file at `path`. Raises `PlanError` where it is missing, no JSON, or not such a plan."""
    try:
        given = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"the plan {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise PlanError(f"the plan {path} is not JSON: {error}") from None
    try:
        return parse_plan(given)
    except PlanError as error:
        raise PlanError(f"the plan {path}: {error}") from None


def parse_plan(given: Any) -> ServePlan:
    """The plan in what JSON gave. Raises `PlanError`."""
    if not isinstance(given, dict) or given.get("schema") != SCHEMA:
        raise PlanError(f"need an object with the schema {SCHEMA!r}")
    model, blocks = _part(given, "model"), _part(given, "block_size")
    layers = given.get("full_heads")
    if not isinstance(layers, list) or not all(
        isinstance(heads, list) and all(type(head) is int for head in heads) for heads in layers
    ):
        raise PlanError("full_heads must be a list of lists of whole numbers, one per layer")
    if len(layers) != _whole(model, "num_hidden_layers"):
        raise PlanError(f"full_heads has {len(layers)} layers, the model {model['num_hidden_layers']}")
    return ServePlan(
        num_kv_heads=_whole(model, "num_key_value_heads"),
        full_heads=tuple(tuple(heads) for heads in layers),
        sinks=_whole(given, "sinks"),
        window=_whole(given, "window"),
        full_block_size=_whole(blocks, "full"),
        streaming_block_size=_whole(blocks, "streaming"),
        prefill=given.get("prefill", "dense"),
    )


def _part(given: dict[str, Any], name: str) -> dict[str, Any]:
    part = given.get(name)
    if not isinstance(part, dict):
        raise PlanError(f"{name} is missing")
    return part


def _whole(given: dict[str, Any], name: str) -> int:
    value = given.get(name)
    if type(value) is not int:
        raise PlanError(f"{name} is {value!r}, need a whole number")
    return value

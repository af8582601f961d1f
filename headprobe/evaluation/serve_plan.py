"""Serving a model from two caches: which KV heads keep everything, what the others keep, and what that saves.

No torch here, and no vLLM: a plan follows from a score file alone. `headprobe_vllm` (serving/) carries it out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from headprobe.compression.budgets import Floats
from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, reduce_to_kv

SCHEMA = "headprobe-serve-plan/1"
PREFILLS = ("dense", "streaming")
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
UNIT = 32  # tokens: blocks are a multiple of this, which vLLM's CPU kernels ask for
LARGEST_FULL, LARGEST_STREAMING = 1024, 128  # tokens in a block
TYPICAL_TOKENS = 4096
STEP_TOKENS = 2048  # that vLLM reads of prompts in one step, where it is not told otherwise


@dataclass(frozen=True)
class BlockSizes:
    """Tokens in a block of the cache of full heads, and of the others."""

    full: int
    streaming: int

    @classmethod
    def fitting(cls, full_heads: int, streaming_heads: int, sinks: int, window: int) -> BlockSizes:
        """The sizes at which a request of `TYPICAL_TOKENS` takes least.

        vLLM's pool has blocks of one size, the larger of what either cache needs: sizes in inverse proportion to the
        numbers of heads waste nothing there, large blocks waste their last part, of window and sinks too.

        >>> BlockSizes.fitting(6, 18, sinks=32, window=128)
        BlockSizes(full=96, streaming=32)
        """
        if not full_heads or not streaming_heads:
            return cls(UNIT, UNIT)
        streaming = range(UNIT, max(UNIT, min(window, LARGEST_STREAMING)) + 1, UNIT)
        pairs = [cls(full, size) for size in streaming for full in range(UNIT, LARGEST_FULL + 1, UNIT)]

        def cost(pair: BlockSizes) -> float:
            blocks = TYPICAL_TOKENS / pair.full + 0.5 - (-sinks // pair.streaming) + window / pair.streaming + 1
            return blocks * max(pair.full * full_heads, pair.streaming * streaming_heads)

        return min(pairs, key=cost)


@dataclass(frozen=True)
class ServePlan:
    """Two caches for a model of `geometry`.

    `full_heads`: for each layer the KV heads that keep everything; the others keep the first `sinks` and the last
    `window` tokens. `prefill`: "dense", as the policy `duo` reads a prompt, or "streaming". `element_bytes`: of a
    number in the cache.
    """

    geometry: ModelGeometry
    full_heads: tuple[tuple[int, ...], ...]
    sinks: int
    window: int
    prefill: str
    blocks: BlockSizes
    element_bytes: int

    @property
    def num_full(self) -> int:
        """KV heads of all layers that keep everything."""
        return sum(map(len, self.full_heads))

    @property
    def num_heads(self) -> int:
        """KV heads of all layers."""
        return self.geometry.num_hidden_layers * self.geometry.num_key_value_heads

    @property
    def entry_bytes(self) -> int:
        """Bytes of key and value of one token in one head."""
        return 2 * self.geometry.head_dim * self.element_bytes

    @property
    def block_bytes(self) -> int:
        """Bytes of a block of the pool: the larger of what either cache needs."""
        streaming = self.num_heads - self.num_full
        return max(self.num_full * self.blocks.full, streaming * self.blocks.streaming) * self.entry_bytes

    def held_blocks(self, tokens: int) -> int:
        """The most blocks that a request of `tokens` tokens holds once its prompt has been read."""
        return self._blocks(tokens, self.window + 1)

    def most_blocks(self, tokens: int) -> int:
        """The most blocks that it holds while its prompt is being read."""
        return self._blocks(tokens, tokens if self.prefill == "dense" else self.window + STEP_TOKENS)

    def _blocks(self, tokens: int, recent: int) -> int:
        size = self.blocks.streaming
        everything = -(-tokens // size)
        streaming = min(everything, self.sinks // size + -(-(recent - 1) // size) + 1)
        full = -(-tokens // self.blocks.full)
        return (full if self.num_full else 0) + (streaming if self.num_full < self.num_heads else 0)

    def stock_bytes(self, tokens: int) -> int:
        """Bytes of a request's cache where all heads keep everything."""
        return tokens * self.num_heads * self.entry_bytes

    def largest_batch(self, memory: int, tokens: int) -> int:
        """Requests of `tokens` tokens answered at once in `memory` bytes; the last one's prompt is still to be read."""
        blocks = memory // self.block_bytes - 1  # vLLM keeps one block back
        spare = blocks - self.most_blocks(tokens)
        return 0 if spare < 0 else 1 + spare // self.held_blocks(tokens)


def serve_plan(
    scores: AnyScores,
    *,
    full_heads: float,
    sinks: int,
    window: int,
    prefill: str = "dense",
    dtype: str | None = None,
    gqa: str = "mean",
) -> ServePlan:
    """The plan by which the share `full_heads` of all KV heads, those of the highest scores, keep everything.

    `sinks` are rounded up to whole blocks. `dtype` None takes that of the scored model. Raises `OptionError`.
    """
    geometry = scores.geometry
    if geometry is None:
        raise OptionError(f"{scores.path.name} does not say which model it belongs to; give --model")
    _check(geometry, full_heads, sinks, window, prefill)
    table = scores.mean if scores.heads == "kv" else reduce_to_kv(scores.mean, geometry.num_key_value_heads, gqa)
    chosen = _best(table, full_heads)
    full = sum(map(len, chosen))
    blocks = BlockSizes.fitting(full, table.size - full, sinks, window)
    return ServePlan(
        geometry=geometry,
        full_heads=chosen,
        sinks=-(-sinks // blocks.streaming) * blocks.streaming,
        window=window,
        prefill=prefill,
        blocks=blocks,
        element_bytes=_element_bytes(scores, dtype),
    )


def plan_record(plan: ServePlan, scores: AnyScores, gqa: str) -> dict[str, Any]:
    """The plan as JSON: what `headprobe_vllm` reads, and where it comes from."""
    geometry = plan.geometry
    return {
        "schema": SCHEMA,
        "model": {
            "id": scores.model,
            "num_hidden_layers": geometry.num_hidden_layers,
            "num_attention_heads": geometry.num_attention_heads,
            "num_key_value_heads": geometry.num_key_value_heads,
            "head_dim": geometry.head_dim,
        },
        "scores": {"file": scores.path.name, "sha256": scores.sha256, "method": scores.method, "gqa": gqa},
        "full_heads": [list(heads) for heads in plan.full_heads],
        "sinks": plan.sinks,
        "window": plan.window,
        "prefill": plan.prefill,
        "block_size": {"full": plan.blocks.full, "streaming": plan.blocks.streaming},
    }


def _check(geometry: ModelGeometry, full_heads: float, sinks: int, window: int, prefill: str) -> None:
    if not 0.0 <= full_heads <= 1.0:
        raise OptionError(f"a share of {full_heads} full heads is out of range, need 0 to 1")
    if sinks < 0:
        raise OptionError(f"sinks is {sinks}, need 0 or more")
    if window < UNIT:
        raise OptionError(f"a window of {window} tokens is too small, need at least the {UNIT} of a block")
    if prefill not in PREFILLS:
        raise OptionError(f"unknown prefill {prefill!r}: known are {', '.join(PREFILLS)}")
    others = geometry.num_hidden_layers - len(geometry.full_attention_layers)
    if others:
        raise OptionError(f"{others} layers of the model do not see everything: the plug-in does not serve such models")


def _best(table: Floats, share: float) -> tuple[tuple[int, ...], ...]:
    """The heads of the highest scores, by layer; of equal ones the earlier."""
    count = round(share * table.size)
    if share > 0.0:
        count = max(1, count)
    mask = np.zeros(table.size, dtype=bool)
    mask[np.argsort(-table.ravel(), kind="stable")[:count]] = True
    return tuple(_rising(row) for row in mask.reshape(table.shape))


def _rising(row: np.ndarray) -> tuple[int, ...]:
    numbers: Iterator[int] = (int(head) for head in np.flatnonzero(row))
    return tuple(numbers)


def _element_bytes(scores: AnyScores, dtype: str | None) -> int:
    own = None if scores.native is None else scores.native.provenance.model.dtype
    named = dtype or own or "bfloat16"
    if named not in BYTES:
        raise OptionError(f"unknown dtype {named!r}: known are {', '.join(BYTES)}")
    return BYTES[named]

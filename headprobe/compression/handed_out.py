"""What a compressed cache handed to the model last, and the attention over it that is called next."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch

from headprobe.attention.tap import LayerCall
from headprobe.compression.importance import AttentionShape
from headprobe.errors import ModelError

if TYPE_CHECKING:
    from headprobe.compression.ragged_cache import RaggedCache


class HandedOut:
    """Keys `[B, G, K, d]` and values `[B, G, K, d_v]` that a layer of a cache gave out, for the next attention."""

    __slots__ = ("cache", "keys", "layer", "values")

    def __init__(self, cache: RaggedCache, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.cache, self.layer = cache, layer
        self.keys: torch.Tensor | None = keys
        self.values: torch.Tensor | None = values

    @property
    def is_taken(self) -> bool:
        """Whether the attention that they are for has been called."""
        return self.keys is None

    def attend(self, call: LayerCall) -> torch.Tensor:
        """Attention output `[B, H, T, d_v]` of the layer. Raises `ModelError` where `call` asks for anything else."""
        layer: Any = self.cache.layers[self.layer]
        keys, values, self.keys, self.values = self.keys, self.values, None, None
        name = f"layer {call.layer} of {call.model_name}"
        if keys is None or values is None:
            raise ModelError(
                f"{name} attends without new keys and values (a second time, or to another layer's), or runs without a "
                "compressed cache: take session.cache, or another model"
            )
        if self.layer != call.layer:
            raise ModelError(f"{name} attends to what layer {self.layer} of the cache holds: it can't be compressed")
        if not (is_same(call.key, keys) and is_same(call.value, values)):
            raise ModelError(
                f"{name} attends to other keys and values than its cache holds (it changes them behind the cache): "
                "that cache can't be compressed by head"
            )
        if call.window != layer.window:
            raise ModelError(f"{name} has a window of {call.window}, its cache one of {layer.window}")
        if not self.cache.pads:
            self.cache.read_pads(call.padding, call.query.shape[0])
        return layer.attend(call.query, AttentionShape(call.scaling, call.softcap, call.sinks), self.cache.pads)


def is_same(given: torch.Tensor, held: torch.Tensor) -> bool:
    """Whether two tensors are one, or at least equal; only for unequal ones (or copies) the numbers are looked at."""
    if given is held:
        return True
    if given.shape != held.shape or given.dtype != held.dtype:
        return False
    return (given.data_ptr() == held.data_ptr() and given.stride() == held.stride()) or torch.equal(given, held)


handed_out: ContextVar[HandedOut | None] = ContextVar("headprobe_handed_out", default=None)

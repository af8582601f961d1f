"""A transformers cache that holds a different number of entries for each KV head, and nothing that was evicted."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from transformers import Cache, DynamicCache

from headprobe.attention.tap import LayerCall
from headprobe.compression.budgets import Ints
from headprobe.compression.conversation import Conversation
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.choice import Kernel
from headprobe.compression.kv_cache_dtypes import AUTO, check_kv_cache_dtype
from headprobe.compression.layers import RaggedLayer, WindowedLayer
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.ragged_store import RaggedStore, announce, take_back
from headprobe.compression.refusals import Refusals, check_mask, left_pads
from headprobe.errors import ModelError, OptionError

# What a compressed cache handed to the model last, and the attention over it that is called next.


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


DEFAULT_SLACK = 64  # entries: room for new tokens behind each segment


class RaggedCache(Refusals, Cache):
    """The compressed cache of one batch of sequences, for a model that runs in a compression session.

    `config` is the model's text config; its full-attention layers are compressed by `plan`, the others are cached as
    transformers does. `slack`: entries of room for new tokens after each segment. `kv_cache_dtype`: how entries are
    held once the prompt has been read, one of `KV_CACHE_DTYPES`; layers that are not compressed stay as they are.
    """

    def __init__(
        self,
        config: Any,
        plan: CompressionPlan,
        kernel: Kernel,
        slack: int = DEFAULT_SLACK,
        keep_positions: bool = False,
        kv_cache_dtype: str = AUTO,
    ) -> None:
        check_kv_cache_dtype(kv_cache_dtype)
        if slack < 1:
            raise OptionError(f"a slack of {slack} entries is too small, need at least 1")
        layers: list[Any] = list(DynamicCache(config=config).layers)
        compressed = 0
        for index, layer in enumerate(layers):
            kind = type(layer).__name__
            if kind == "DynamicLayer":
                layers[index] = RaggedLayer(plan, compressed, kernel, slack, keep_positions, kv_cache_dtype)
                compressed += 1
            elif kind == "DynamicSlidingWindowLayer":
                layers[index] = WindowedLayer(layer.sliding_window)
        if compressed != plan.num_layers:
            raise ModelError(f"the plan is for {plan.num_layers} compressible layers, the model has {compressed}")
        super().__init__(layers=layers)
        self.plan, self.kv_cache_dtype = plan, kv_cache_dtype
        self.pads: list[int] = []
        self.conversation = Conversation()

    # -- what transformers calls ------------------------------------------------------------------------------------

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a layer's new keys and values `[B, G, T, d]`; the attention function of the session does the rest."""
        waiting = handed_out.get()
        if waiting is not None and waiting.cache is self and not waiting.is_taken:
            raise ModelError(
                f"layer {waiting.layer} did not reach headprobe's attention: use the cache inside a compression session"
            )
        layer = self.layers[layer_idx]
        if not isinstance(layer, (RaggedLayer, WindowedLayer)):
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        keys, values = layer.update(key_states, value_states, *args, **kwargs)
        handed_out.set(HandedOut(self, layer_idx, keys, values))
        return keys, values

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.pads = []
        self.conversation = Conversation()

    # -- what it holds ----------------------------------------------------------------------------------------------

    @property
    def ragged_layers(self) -> list[RaggedLayer]:
        """The compressed layers."""
        return [layer for layer in self.layers if isinstance(layer, RaggedLayer)]

    @property
    def kernel(self) -> Kernel:
        """What computes attention on the compressed layers; it is settled when the prompt has been read."""
        return self.ragged_layers[0].kernel

    @property
    def tokens_seen(self) -> int:
        """Tokens read and produced so far, pads included."""
        return self.ragged_layers[0].seen

    @property
    def lengths(self) -> Ints:
        """Entries held, `[L, B, G]` over the compressed layers."""
        return np.stack([layer.lengths for layer in self.ragged_layers])

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values held, room for new tokens, scales and uncompressed layers included."""
        return sum(getattr(layer, "nbytes", 0) for layer in self.layers)

    @property
    def scale_nbytes(self) -> int:
        """Bytes of `nbytes` that are scales and offsets of quantized entries."""
        return sum(store.scale_nbytes for store in self.stores)

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes beside keys and values: scores and positions of policies that evict while decoding."""
        return sum(layer.bookkeeping_nbytes for layer in self.ragged_layers)

    # -- decoding ---------------------------------------------------------------------------------------------------

    def next_positions(self, device: torch.device) -> torch.Tensor:
        """Positions `[B, 1]` of the tokens that come next: tokens seen less pads."""
        return torch.tensor([[self.tokens_seen - pad] for pad in self.pads], device=device)

    @property
    def stores(self) -> list[RaggedStore]:
        """The stores of the compressed layers, once the prompt has been read."""
        return [layer.store for layer in self.ragged_layers if layer.store is not None]

    @property
    def layout(self) -> tuple[int, ...]:
        """Numbers that change whenever a layer is laid out again."""
        return tuple(store.layout_number for store in self.stores)

    @property
    def is_fixed(self) -> bool:
        """Whether tokens are added in place in all layers (sliding-window and linear ones allocate at every step)."""
        return all(isinstance(layer, RaggedLayer) for layer in self.layers)

    @property
    def evicts(self) -> bool:
        """Whether new tokens push older entries out, so that they cannot be taken back."""
        return self.plan.policy.evicts_while_decoding

    def has_room(self, count: int) -> bool:
        """Whether `count` new tokens fit as the layers are laid out (evicting ones always have room)."""
        return self.evicts or all(store.room >= count for store in self.stores)

    def make_room(self, count: int) -> None:
        """Lay out again what has no room for `count` new tokens (evicting layers always have)."""
        for store in () if self.evicts else self.stores:
            store.make_room(count)

    def announce(self) -> None:
        """Count one token that the model is about to read, for all layers at once."""
        announce(self.stores, 1)

    def advance(self, count: int) -> None:
        """Count tokens on the host that went through on the device alone."""
        for layer in self.ragged_layers:
            layer.advance(count)

    @property
    def counters(self) -> list[tuple[int, Ints]]:
        """What the host counts: of each compressed layer tokens seen and entries held `[S]`. Set, it forgets a step."""
        return [layer.counters for layer in self.ragged_layers]

    @counters.setter
    def counters(self, counted: list[tuple[int, Ints]]) -> None:
        handed_out.set(None)
        for layer, counters in zip(self.ragged_layers, counted, strict=True):
            layer.counters = counters
        self.conversation.rewind(self.tokens_seen)

    def take_back(self, count: int) -> None:
        """Forget the last `count` tokens; only where `is_fixed` and not `evicts`."""
        assert self.is_fixed
        assert not self.evicts
        take_back(self.stores, count)
        for layer in self.ragged_layers:
            layer.seen -= count
        self.conversation.rewind(self.tokens_seen)

    # -- prompts ----------------------------------------------------------------------------------------------------

    @property
    def is_empty(self) -> bool:
        """Whether no token has been read."""
        return self.tokens_seen == 0

    def expect(self, layer_idx: int, tokens: int) -> None:
        """Announce to a layer that a prompt of `tokens` tokens comes in chunks."""
        layer = self.layers[layer_idx]
        if isinstance(layer, RaggedLayer | WindowedLayer):
            layer.expect(tokens)

    def read_pads(self, mask: torch.Tensor | None, batch: int) -> None:
        """Learn from a 2D attention mask (1 = a token; None: nothing but tokens) how far each prompt is padded.

        Raises `OptionError` for pads anywhere but on the left: only leading ones can be left out.
        """
        self.pads = [0] * batch if mask is None else left_pads(mask)

    def check_turn(self, mask: Any, batch: int, tokens: int) -> None:
        """Before a pass that reads `tokens` more of each of `batch` sequences: learn the prompts' pads from a mask over
        all tokens so far and new, or check that it has just these.

        Raises `OptionError` for another number of sequences, a mask of another size and pads elsewhere.
        """
        if not self.is_empty and len(self.pads) != batch:
            raise OptionError(f"a pass over {batch} sequences on a cache that holds {len(self.pads)}")
        if self.is_empty:
            self.pads = [0] * batch if mask is None else check_mask(mask, batch, tokens)
        elif mask is not None:
            pads = check_mask(mask, batch, self.tokens_seen + tokens)
            if pads != self.pads:
                raise OptionError(
                    f"the padding changed from {self.pads} to {pads} tokens: later turns cannot be padded"
                )

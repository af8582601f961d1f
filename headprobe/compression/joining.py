"""Prompts that were read one after another, brought together into one batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

from headprobe.compression.conversation import Conversation
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.ragged_layer import RaggedLayer
from headprobe.compression.windowed_layer import WindowedLayer
from headprobe.errors import OptionError


def join(caches: Sequence[RaggedCache]) -> RaggedCache:
    """One cache with the sequences of all `caches`, in their order, for decoding them together.

    Each sequence goes on as if it were alone: sequences that have seen fewer tokens than the longest count as padded on
    the left by the difference, as in a batch of left-padded prompts. Layers are joined one after another, and the
    parts' are emptied as they are taken over, so that no more than one layer is held twice.

    Raises `OptionError` for no cache, caches of different plans or models, one that has read no prompt, and layers that
    are neither compressed nor have a sliding window.

        caches = []
        for ids in prompts:
            model(input_ids=ids, **with_cache(model, session.new_cache()))
            caches.append(session.cache)
        session.cache = join(caches)
    """
    _check(caches)
    tokens = max(cache.tokens_seen - pad for cache in caches for pad in cache.pads)
    pads = [tokens - (cache.tokens_seen - pad) for cache in caches for pad in cache.pads]
    joined = copy(caches[0])
    joined.layers, joined.pads = [], pads
    joined.conversation = Conversation.joined([cache.conversation for cache in caches], pads, tokens)
    for index in range(len(caches[0].layers)):
        parts: list[Any] = [cache.layers[index] for cache in caches]
        joined.layers.append(type(parts[0]).joined(parts, tokens))
        for part in parts:
            part.reset()
    for cache in caches:
        cache.pads, cache.conversation = [], Conversation()
    return joined


def _check(caches: Sequence[RaggedCache]) -> None:
    if not caches:
        raise OptionError("there is nothing to join: 0 caches")
    first = caches[0]
    if len({id(cache) for cache in caches}) < len(caches):
        raise OptionError(f"one of {len(caches)} caches is there twice: each can be joined once")
    for index, cache in enumerate(caches):
        if not cache.pads or len(cache.stores) < len(cache.ragged_layers):
            raise OptionError(f"cache {index} has read no prompt: there is nothing to join")
        if _kind(cache) != _kind(first):
            raise OptionError(f"cache {index} has another policy, budget or model than cache 0: they can't be joined")
    others = [type(layer).__name__ for layer in first.layers if not isinstance(layer, RaggedLayer | WindowedLayer)]
    if others:
        raise OptionError(f"caches with a {others[0]} can't be joined, only full attention and sliding windows")


def _kind(cache: RaggedCache) -> tuple[object, ...]:
    """What caches must have in common."""
    plan = cache.plan
    widths = [
        (store.num_kv_heads, store.keys.shape[1], store.values.shape[1], store.keys.dtype) for store in cache.stores
    ]
    return plan.policy, plan.budget, plan.ratio, [type(layer) for layer in cache.layers], widths

"""What prompts share: the order in which it is most, and a cache whose end can be dropped and written anew.

Buffers are allocated once for the longest prompt; adding tokens writes behind those that are there, and dropping them
only moves the end. transformers' own dynamic cache copies everything it holds whenever a token is added.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headprobe.errors import ModelError
from headprobe.probes.prompt import Prompt
from headprobe.probes.reading import AnyPrompt


class PrefixLayer(CacheLayerMixin):
    """Keys and values of one layer, `[B, G, capacity, d]`, of which the first `length` positions are in use.

    `on_host`: they lie in the host's memory, and those in use are copied to the device for each pass, layer by layer.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int, on_host: bool = False) -> None:
        super().__init__()
        self.capacity, self.length, self.on_host = capacity, 0, on_host

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._buffer(states) for states in (key_states, value_states))
        self.is_initialized = True

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        shape = (*states.shape[:2], self.capacity, states.shape[-1])
        if not self.on_host:
            return states.new_empty(shape)
        return torch.empty(shape, dtype=states.dtype, pin_memory=states.is_cuda)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind those in use; gives views of all in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.capacity:
            raise ModelError(
                f"a layer caches {self.length} tokens of at most {self.capacity}: the model goes through its layers "
                "more than once for each token, so its heads have no attention of their own"
            )
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        return (keys.to(self.device), values.to(self.device)) if self.on_host else (keys, values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All positions in use and the new ones."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.length

    def get_max_length(self) -> int:
        """The capacity."""
        return self.capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` positions, as transformers counts them."""
        self.length -= abs(tokens_to_remove)


class PrefixCache(Cache):
    """A cache for at most `capacity` tokens of one sequence, in all `num_layers` layers; see `PrefixLayer`."""

    def __init__(self, num_layers: int, capacity: int, on_host: bool = False) -> None:
        super().__init__(layers=[PrefixLayer(capacity, on_host) for _ in range(num_layers)])


def crop(cache: Cache, length: int) -> None:
    """Drop what `cache` holds behind its first `length` tokens, if anything."""
    surplus = cache.get_seq_length() - length
    if surplus > 0:
        cache.crop(-surplus)


def prefix_order(prompts: Sequence[AnyPrompt]) -> tuple[list[int], list[int]]:
    """The order in which prompts share most, and how many tokens each shares with the haystack prefix.

    The prefix is that of the prompt with the deepest insertion point; at least the last prompt token is never shared,
    since its query is the first row. Texts that are read twice share nothing and come last.
    """
    needles = [(i, p) for i, p in enumerate(prompts) if isinstance(p, Prompt)]
    _, deepest = max(needles, key=lambda found: found[1].needle_span.start, default=(0, None))
    prefix = () if deepest is None else deepest.input_ids[: deepest.needle_span.start]
    shared = {i: min(common_start(p.input_ids, prefix), len(p.input_ids) - 1) for i, p in needles}
    order = sorted(range(len(prompts)), key=lambda i: (i not in shared, -shared.get(i, 0), i))
    return order, [shared.get(i, 0) for i in order]


def common_start(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common start of two token lists."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low

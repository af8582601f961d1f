"""A cache whose end can be dropped and written anew: the shared prefix of many prompts, kept in place.

Buffers are allocated once for the longest prompt; adding tokens writes behind those that are there, and dropping them
only moves the end. transformers' own dynamic cache copies everything it holds whenever a token is added.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headprobe.errors import ModelError


class PrefixLayer(CacheLayerMixin):
    """Keys and values of one layer, `[B, G, capacity, d]`, of which the first `length` positions are in use."""

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        self.is_initialized = True

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
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

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
    """A cache for at most `capacity` tokens of one sequence, in all `num_layers` layers."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[PrefixLayer(capacity) for _ in range(num_layers)])

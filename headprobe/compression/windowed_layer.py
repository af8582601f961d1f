"""The cache of a sliding-window layer, which is left as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import pad as padded
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from headprobe.compression.importance import AttentionShape
from headprobe.compression.prefill import dense_by_sequence
from headprobe.compression.refusals import Refusals


class WindowedLayer(Refusals, CacheLayerMixin):
    """A sliding-window layer, cached as transformers does; the prompt is read in windows, without an n x n mask."""

    is_sliding = True

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window, self.inner = window, DynamicSlidingWindowLayer(window)
        self._expected: int | None = None
        self._pieces: list[tuple[torch.Tensor, torch.Tensor]] = []

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Remember type and device."""
        self.inner.lazy_initialization(key_states, value_states)
        self.is_initialized = True

    def expect(self, tokens: int) -> None:
        """Announce a prompt of so many tokens that comes in chunks."""
        self._expected = tokens

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new keys and values `[B, G, T, d]`; gives what the queries of these tokens may see."""
        self.is_initialized = True
        if self.inner.get_seq_length():
            self._pieces = [self.inner.update(key_states, value_states)]
            return self._pieces[0]
        self._pieces.append((key_states, value_states))
        keys = torch.cat([key for key, _ in self._pieces], 2)
        values = torch.cat([value for _, value in self._pieces], 2)
        self._pieces = [(keys, values)]
        return keys, values

    def attend(self, query: torch.Tensor, shape: AttentionShape, pads: Sequence[int]) -> torch.Tensor:
        """Attention output `[B, H, T, d]` of the tokens that `update` took last."""
        keys, values = self._pieces[0]
        if self.inner.get_seq_length():
            return self._decode(query, keys, values, shape, pads)
        out = dense_by_sequence(query, keys, values, shape, pads, self.inner.sliding_window)
        if keys.shape[2] >= (self._expected or 0):
            self.inner.update(keys, values)
            self._pieces, self._expected = [], None
            assert self.inner.keys is not None
            assert self.inner.values is not None
            self.inner.keys, self.inner.values = self.inner.keys.clone(), self.inner.values.clone()
        return out

    def _decode(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        shape: AttentionShape,
        pads: Sequence[int],
    ) -> torch.Tensor:
        """New tokens over the cached window, pads left out."""
        self._pieces = []
        held = keys.shape[2]
        gone = self.inner.get_seq_length() - held
        left = [max(0, pad - gone) for pad in pads]
        return dense_by_sequence(query, keys, values, shape, left, self.inner.sliding_window)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As transformers' layer."""
        return self.inner.get_mask_sizes(query_length)

    def get_seq_length(self) -> int:
        """Tokens seen."""
        return self.inner.get_seq_length() or sum(keys.shape[2] for keys, _ in self._pieces)

    def get_max_length(self) -> int:
        """The window."""
        return self.inner.get_max_length()

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(self.inner.sliding_window)  # type: ignore[misc]

    @classmethod
    def joined(cls, parts: Sequence[WindowedLayer], tokens: int) -> WindowedLayer:
        """One layer for the sequences of all parts, as if each had been padded on the left to `tokens` tokens."""
        new = cls(parts[0].inner.sliding_window)
        held = min(tokens, new.inner.sliding_window - 1)
        pairs = [_both(part) for part in parts]
        new.lazy_initialization(*pairs[0])
        new.inner.keys = torch.cat([_aligned(keys, held) for keys, _ in pairs])
        new.inner.values = torch.cat([_aligned(values, held) for _, values in pairs])
        new.inner.cumulative_length = tokens
        return new

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        tensors = (self.inner.keys, self.inner.values)
        return sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))


def _both(layer: WindowedLayer) -> tuple[torch.Tensor, torch.Tensor]:
    assert layer.inner.keys is not None
    assert layer.inner.values is not None
    return layer.inner.keys, layer.inner.values


def _aligned(states: torch.Tensor, held: int) -> torch.Tensor:
    """The last `held` positions of `states` `[B, G, k, d]`, zeros before them where there are fewer."""
    last = states[:, :, -held:]
    return padded(last, (0, 0, held - last.shape[2], 0))

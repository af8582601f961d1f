"""The layers of a compressed cache: ragged ones, and those of sliding windows, which are left as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.functional import pad as padded
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer

from headprobe.compression.budgets import Ints
from headprobe.compression.eviction import Evictor
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.choice import Kernel, fitting
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.policies import CompressionPlan
from headprobe.compression.prefill import KeptHead, PromptReader, Watched, choose, dense_by_sequence
from headprobe.compression.quantized_store import store_of
from headprobe.compression.ragged_store import RaggedStore
from headprobe.compression.refusals import Refusals
from headprobe.errors import ModelError

# The cache of a compressed layer: a prompt is read densely, and what stays of it lies in a ragged store.


class RaggedLayer(Refusals, CacheLayerMixin):
    """One layer's compressed cache. It reads the prompt densely, keeps what the plan says, and decodes on that.

    `layer` counts among the compressed layers. `positions`: for each (sequence, KV head) the kept positions, if
    `keep_positions`; counted from the sequence's first real token, -1 for a compensation entry.
    """

    is_sliding = False
    window = None  # it sees all that came before

    def __init__(
        self,
        plan: CompressionPlan,
        layer: int,
        kernel: Kernel,
        slack: int,
        keep_positions: bool,
        kv_cache_dtype: str = AUTO,
    ) -> None:
        super().__init__()
        self.plan, self.layer, self.kernel, self.slack = plan, layer, kernel, slack
        self.keep_positions, self.kv_cache_dtype = keep_positions, kv_cache_dtype
        self.seen = 0
        self.store: RaggedStore | None = None
        self.evictor: Evictor | None = None
        self.positions: list[torch.Tensor] = []
        self._reader: PromptReader | None = None
        self._new: tuple[torch.Tensor, torch.Tensor] | None = None

    # -- what transformers calls ------------------------------------------------------------------------------------

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Remember type and device."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take new keys and values `[B, G, T, d]`; while the prompt is read, all so far come back."""
        if not self.is_initialized:
            self._check(key_states)
            self.lazy_initialization(key_states, value_states)
        self.seen += key_states.shape[2]
        if self.store is None:
            if key_states.shape[1] != self.plan.own_kv_heads:
                stated = self.plan.own_kv_heads
                raise ModelError(f"a layer has {key_states.shape[1]} KV heads, by config.json it has {stated}")
            if self._reader is None:
                self.expect(key_states.shape[2])
                assert self._reader is not None
            return self._reader.extend(key_states, value_states)
        self._new = key_states, value_states
        return key_states, value_states

    def _check(self, keys: torch.Tensor) -> None:
        if keys.shape[1] != self.plan.own_kv_heads:
            raise ModelError(
                f"compressed layer {self.layer} caches {keys.shape[1]} KV heads, by the model's config it has "
                f"{self.plan.own_kv_heads}: its cache can't be compressed by head"
            )

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had been evicted."""
        return self.seen + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens seen (not entries held)."""
        return self.seen

    def get_max_length(self) -> int:
        """No maximum."""
        return -1

    def reset(self) -> None:
        """Forget everything."""
        self.__init__(  # type: ignore[misc]
            self.plan, self.layer, self.kernel, self.slack, self.keep_positions, self.kv_cache_dtype
        )

    # -- attention --------------------------------------------------------------------------------------------------

    def expect(self, tokens: int) -> None:
        """Announce a prompt, its length in tokens, which may come in chunks."""
        self._reader = PromptReader(Watched.by([self.plan.policy]), tokens)

    def attend(self, query: torch.Tensor, shape: AttentionShape, pads: Sequence[int]) -> torch.Tensor:
        """Attention output `[B, H, T, d]` of the tokens that `update` took last."""
        if self._reader is not None:
            out = self._reader.attend(query, shape, pads)
            if self._reader.is_done:
                self._compress(self._reader, shape, pads)
                self._reader = None
            return out
        assert self.store is not None
        assert self._new is not None
        keys, values = self._new
        self._new = None
        if self.evictor is None:
            self.store.append(keys, values)
            return self.kernel.attend(query, self.store, shape)
        steps = zip(query.split(1, 2), keys.split(1, 2), values.split(1, 2), strict=True)
        return torch.cat([self._step(*step, shape) for step in steps], 2)

    def attend_written(self, query: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
        """Attention output `[B, H, 1, d]` of one announced token a sequence, whose keys and values the caller has put
        into the store's entries `last`; only without eviction."""
        assert self.store is not None
        assert self.evictor is None
        self.seen += 1
        self.store.written(1)
        return self.kernel.attend(query, self.store, shape)

    def _compress(self, reader: PromptReader, shape: AttentionShape, pads: Sequence[int]) -> None:
        """Keep what stays of the prompt."""
        seen = reader.observations(shape, pads)
        self.fill([head for each in seen for head in choose(each, self.plan, self.layer)], shape, pads)

    def fill(self, heads: Sequence[KeptHead], shape: AttentionShape, pads: Sequence[int]) -> None:
        """Lay out the store with `heads`, in order of sequence, then head, when `seen` tokens have been read."""
        if not self.is_initialized:
            self.lazy_initialization(heads[0].segment.keys, heads[0].segment.values)
        evicts = self.plan.policy.evicts_while_decoding
        rooms = [head.limit + 1 if evicts else len(head.positions) + self.slack for head in heads]
        segments = [head.segment for head in heads]
        self.store = store_of(segments, len(pads), rooms, self.slack, self.kv_cache_dtype)
        self.kernel = fitting(self.kernel, self.store, shape, weights=evicts)
        if evicts:
            self.evictor = Evictor(self.plan.policy, self.store, heads, [self.seen - pad for pad in pads])
        if self.keep_positions:
            self.positions = [head.positions for head in heads]

    def _step(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, shape: AttentionShape
    ) -> torch.Tensor:
        """One token with eviction: append, attend, update the scores, evict."""
        assert self.store is not None
        assert self.evictor is not None
        assert self.kernel.weigh is not None
        self.store.append(keys, values)
        self.evictor.appended()
        out, weights = self.kernel.weigh(query, self.store, shape)
        self.evictor.attended(weights)
        return out

    def advance(self, count: int) -> None:
        """Count tokens that went through on the device alone."""
        assert self.store is not None
        self.seen += count
        self.store.count(count)
        if self.evictor is not None:
            self.evictor.count_evicted()

    @property
    def counters(self) -> tuple[int, Ints]:
        """What the host counts: tokens seen and entries held `[S]`."""
        assert self.store is not None
        return self.seen, self.store.lengths

    @counters.setter
    def counters(self, counted: tuple[int, Ints]) -> None:
        assert self.store is not None
        self.seen, self.store.lengths = counted
        self._new = None

    @classmethod
    def joined(cls, parts: Sequence[RaggedLayer], tokens: int) -> RaggedLayer:
        """One layer for the sequences of all parts, as if each had been padded on the left to `tokens` tokens."""
        first, stores = parts[0], [part.store for part in parts if part.store is not None]
        new = cls(first.plan, first.layer, first.kernel, first.slack, first.keep_positions, first.kv_cache_dtype)
        new.dtype, new.device, new.is_initialized = stores[0].dtype, stores[0].device, True
        new.seen = tokens
        evictors = [part.evictor for part in parts if part.evictor is not None]
        new.store = type(stores[0]).joined(stores, None if evictors else first.slack)
        if evictors:
            new.evictor = Evictor.joined(evictors, new.store)
        new.positions = [positions for part in parts for positions in part.positions]
        return new

    # -- what it holds ----------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Ints:
        """Entries held by each KV head of each sequence, `[B, G]`."""
        if self.store is None:
            return np.zeros((0, self.plan.own_kv_heads), dtype=np.int64)
        return self.store.lengths.reshape(self.store.batch, -1)

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, slack and scales included."""
        return 0 if self.store is None else self.store.nbytes

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes that eviction keeps beside them."""
        return 0 if self.evictor is None else self.evictor.nbytes


# The cache of a sliding-window layer, which is left as it is.


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
        """Announce a prompt of `tokens` tokens that comes in chunks."""
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

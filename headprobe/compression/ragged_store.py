"""Keys and values of one layer, a segment of its own length for each (sequence, KV head), stored flat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from headprobe.compression.budgets import Ints


@dataclass(frozen=True, eq=False)
class Segment:
    """What a (sequence, KV head) starts with: `keys` and `values` `[k, d]`, and `bias` `[k]` on its scores or None."""

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None = None


class RaggedStore:
    """Flat `keys` and `values` `[sum of capacities, d]`; segment `b * G + g` belongs to sequence b and KV head g.

    `start` and `length` (int32, on the device) say where each segment begins and how much of it is in use; `capacity`
    (host) how much room it has. Appending writes behind the used part: nothing is copied as long as there is room. When
    a segment is full the store is laid out anew with `slack` more entries each.
    """

    def __init__(self, segments: Sequence[Segment], batch: int, capacities: Sequence[int], slack: int) -> None:
        self.batch, self.slack = batch, slack
        self._lengths: Ints = np.array([segment.keys.shape[0] for segment in segments], dtype=np.int64)
        self.capacities: Ints = np.asarray(capacities, dtype=np.int64)
        self._allocate(segments[0].keys, segments[0].values, any(s.bias is not None for s in segments))
        for index, segment in enumerate(segments):
            where = slice(int(self.starts[index]), int(self.starts[index] + self.lengths[index]))
            self.keys[where], self.values[where] = segment.keys, segment.values
            if segment.bias is not None:
                assert self.bias is not None
                self.bias[where] = segment.bias

    def _allocate(self, keys: torch.Tensor, values: torch.Tensor, biased: bool) -> None:
        total, device = int(self.capacities.sum()), keys.device
        self.keys = keys.new_zeros(total, keys.shape[-1])
        self.values = values.new_zeros(total, values.shape[-1])
        self.bias = torch.zeros(total, dtype=torch.float32, device=device) if biased else None
        self.starts: Ints = np.concatenate([[0], np.cumsum(self.capacities)[:-1]]).astype(np.int64)
        self.start = torch.tensor(self.starts, dtype=torch.int32, device=device)
        self.length = torch.tensor(self.lengths, dtype=torch.int32, device=device)
        self._next = torch.tensor(self.starts + self.lengths, device=device)  # where each segment is written next
        self._room = int((self.capacities - self.lengths).min())
        for known in ("layout", "is_even"):
            self.__dict__.pop(known, None)

    # -- what it holds ----------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Ints:
        """Entries in use of each segment as the host counts them, `[S]`."""
        return self._lengths

    @lengths.setter
    def lengths(self, counted: Ints) -> None:
        self._lengths = counted
        self._room = int((self.capacities - counted).min())

    @property
    def num_segments(self) -> int:
        """Sequences times KV heads."""
        return len(self.capacities)

    @property
    def num_kv_heads(self) -> int:
        """KV heads of one sequence."""
        return self.num_segments // self.batch

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, slack included: `sum of capacities x 2 x d x bytes per element`."""
        return self.keys.nbytes + self.values.nbytes

    @cached_property
    def is_even(self) -> bool:
        """Whether all segments have the same room, so that keys and values are plain `[S, capacity, d]` tensors."""
        return bool((self.capacities == self.capacities[0]).all())

    @property
    def is_level(self) -> bool:
        """Whether all segments have the same room and are filled to the same length."""
        return self.is_even and bool((self.lengths == self.lengths[0]).all())

    @cached_property
    def layout(self) -> Layout:
        """Index tables of the present arrangement."""
        return Layout.of(self.starts, self.capacities, self.keys.device)

    def pieces(self) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Keys and values in use, a view `[length, d]` for each segment."""
        sizes = np.stack([self.lengths, self.capacities - self.lengths], 1).ravel().tolist()
        return self.keys.split_with_sizes(sizes)[::2], self.values.split_with_sizes(sizes)[::2]

    # -- change -----------------------------------------------------------------------------------------------------

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add `T` entries to every segment: `keys` and `values` `[B, G, T, d]`."""
        count = keys.shape[2]
        if count > self._room:
            self._grow(count)
        where = self._next
        if count > 1:
            where = (where[:, None] + torch.arange(count, device=keys.device)).flatten()
        self.keys.index_copy_(0, where, keys.reshape(-1, keys.shape[-1]))
        self.values.index_copy_(0, where, values.reshape(-1, values.shape[-1]))
        self.length += count
        self._next += count
        self._lengths = self._lengths + count
        self._room -= count

    def drop_last(self, over: torch.Tensor) -> None:
        """Let go of the last entry of the segments where `over` (bool `[S]`, on the device) says so."""
        self.length -= over.to(torch.int32)
        self._next -= over.to(torch.int64)

    def _grow(self, count: int) -> None:
        """Lay the store out anew, each segment with room for `count` entries and the slack."""
        keys, values, bias, starts = self.keys, self.values, self.bias, self.starts
        old = torch.cat(
            [torch.arange(int(s), int(s + n), device=keys.device) for s, n in zip(starts, self.lengths, strict=True)]
        )
        self.capacities = self.lengths + count + self.slack
        self._allocate(keys, values, bias is not None)
        new = torch.cat(
            [
                torch.arange(int(s), int(s + n), device=keys.device)
                for s, n in zip(self.starts, self.lengths, strict=True)
            ]
        )
        self.keys[new], self.values[new] = keys[old], values[old]
        if bias is not None:
            assert self.bias is not None
            self.bias[new] = bias[old]


@dataclass(frozen=True, eq=False)
class Layout:
    """For each entry of a store its segment and its place in it; for each segment the entries of a padded table.

    `segment`, `offset` int64 `[total]`; `table` int64 `[S, largest capacity]` (padded with the segment's first entry).
    """

    segment: torch.Tensor
    offset: torch.Tensor
    table: torch.Tensor

    @classmethod
    def of(cls, starts: Ints, capacities: Ints, device: torch.device) -> Layout:
        """The tables of segments that lie one behind the other."""
        segment = np.repeat(np.arange(len(starts)), capacities)
        offset = np.arange(int(capacities.sum())) - starts[segment]
        places = np.arange(int(capacities.max()))
        table = starts[:, None] + np.where(places < capacities[:, None], places, 0)
        return cls(*(torch.from_numpy(array).to(device) for array in (segment, offset, table)))

"""Keys and values of one layer, a segment of its own length for each (sequence, KV head), stored flat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from itertools import count as counting

import numpy as np
import torch

from headprobe.compression.budgets import Ints
from headprobe.compression.kernels.tables import SegmentBounds, SplitTable
from headprobe.compression.kv_cache_dtypes import AUTO

_layout_numbers = counting(1)
ARRANGEMENT = ("is_even", "layout", "splits", "bounds")  # what is worked out once for each arrangement


@dataclass(frozen=True, eq=False)
class Segment:
    """What a (sequence, KV head) starts with: `keys` and `values` `[k, d]`, and `bias` `[k]` on its scores or None."""

    keys: torch.Tensor
    values: torch.Tensor
    bias: torch.Tensor | None = None


class RaggedStore:
    """Flat `keys` and `values` `[sum of capacities, d]`; segment `b * G + g` belongs to sequence b and KV head g.

    `start` and `length` (int32) and `last` (int64, the entry that was written last), all `[S]` on the device, say where
    each segment begins, how much of it is in use and where that ends; `starts`, `lengths` and `capacities` are the
    host's numbers. Appending writes behind the used part: nothing is copied as long as there is room. When a segment is
    full the store is laid out again with `slack` more entries each; `layout_number` is another one then.
    """

    kv_cache_dtype = AUTO

    def __init__(self, segments: Sequence[Segment], batch: int, capacities: Sequence[int] | Ints, slack: int) -> None:
        self.batch, self.slack = batch, slack
        lengths: Ints = np.array([segment.keys.shape[0] for segment in segments], dtype=np.int64)
        biased = any(segment.bias is not None for segment in segments)
        self._begin(segments[0].keys, segments[0].values)
        self._allocate(biased, lengths, np.asarray(capacities, dtype=np.int64))
        for where, segment in zip(self.entries().split(lengths.tolist()), segments, strict=True):
            self._write(where, segment.keys, segment.values)
            if self.bias is not None and segment.bias is not None:
                self.bias.index_copy_(0, where, segment.bias)

    @classmethod
    def joined(cls, stores: Sequence[RaggedStore], slack: int | None) -> RaggedStore:
        """The sequences of all stores, one behind the other, with room for `slack` more entries (None: their own).

        Stores of one kind: entries are copied as they are held.
        """
        new = copy(stores[0])
        new.batch = sum(store.batch for store in stores)
        lengths: Ints = np.concatenate([store.lengths for store in stores])
        capacities: Ints = np.concatenate([store.capacities for store in stores])
        biased = any(store.bias is not None for store in stores)
        new._allocate(biased, lengths, capacities if slack is None else lengths + slack)
        where, old = new.entries(), [store.entries() for store in stores]
        for number, table in enumerate(new.tables):
            parts = [store.tables[number][entries] for store, entries in zip(stores, old, strict=True)]
            table.index_copy_(0, where, torch.cat(parts))
        if new.bias is not None:
            biases = [
                new.bias.new_zeros(len(entries)) if store.bias is None else store.bias[entries]
                for store, entries in zip(stores, old, strict=True)
            ]
            new.bias.index_copy_(0, where, torch.cat(biases))
        return new

    def _allocate(self, biased: bool, lengths: Ints, capacities: Ints) -> None:
        total, device = int(capacities.sum()), self.device
        self.capacities = capacities
        self.starts: Ints = np.concatenate([[0], np.cumsum(capacities)[:-1]]).astype(np.int64)
        self.lengths = lengths
        self._make_tables(total)
        self.bias = torch.zeros(total, dtype=torch.float32, device=device) if biased else None
        self.start = torch.tensor(self.starts, dtype=torch.int32, device=device)
        self.length = torch.tensor(lengths, dtype=torch.int32, device=device)
        self.last = torch.tensor(self.starts + lengths - 1, dtype=torch.int64, device=device)
        self.layout_number = next(_layout_numbers)
        for derived in ARRANGEMENT:
            self.__dict__.pop(derived, None)

    # -- how entries are held: what a store of another number format does otherwise ---------------------------------

    def _begin(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Take width, type and device of the entries to come."""
        self.keys, self.values = keys.new_empty(0, keys.shape[-1]), values.new_empty(0, values.shape[-1])

    def _make_tables(self, total: int) -> None:
        """Hold `total` entries of zeros, of the same kind as before."""
        self.keys = self.keys.new_zeros(total, self.keys.shape[-1])
        self.values = self.values.new_zeros(total, self.values.shape[-1])

    def _write(self, where: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put `keys` and `values` `[k, d]` into the entries `where`, int64 `[k]`."""
        self.keys.index_copy_(0, where, keys)
        self.values.index_copy_(0, where, values)

    @property
    def tables(self) -> tuple[torch.Tensor, ...]:
        """The tensors that hold the entries, each `[total, ...]`."""
        return self.keys, self.values

    def read(self, where: slice | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values `[k, d]` of the entries `where`; views of a slice, as far as they are held as numbers."""
        return self.keys[where], self.values[where]

    def read_values(self, where: slice | torch.Tensor) -> torch.Tensor:
        """Values `[k, d_v]` of the entries `where`."""
        return self.values[where]

    @property
    def dtype(self) -> torch.dtype:
        """The type in which entries come and are read."""
        return self.keys.dtype

    @property
    def device(self) -> torch.device:
        """Where they lie."""
        return self.keys.device

    @property
    def widths(self) -> tuple[int, int]:
        """Numbers of a key and of a value."""
        return self.keys.shape[1], self.values.shape[1]

    @property
    def entry_nbytes(self) -> int:
        """Bytes that one entry takes: its key and its value."""
        return self.plain_entry_nbytes

    @property
    def scale_nbytes(self) -> int:
        """Bytes of `nbytes` that are scales and offsets."""
        return 0

    # -- what it holds ----------------------------------------------------------------------------------------------

    @property
    def lengths(self) -> Ints:
        """Entries in use of each segment as the host counts them, `[S]`."""
        return self._lengths + self._added

    @lengths.setter
    def lengths(self, counted: Ints) -> None:
        self._lengths, self._added, self._announced = counted, 0, 0
        self._room = int((self.capacities - counted).min())
        self._is_flush = bool((counted == counted[0]).all())

    @property
    def room(self) -> int:
        """Entries that can be appended to every segment before the store is laid out again."""
        return self._room - self._added

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
        """Bytes of keys and values, slack included: `sum of capacities x bytes of an entry`."""
        return sum(table.nbytes for table in self.tables)

    @property
    def total(self) -> int:
        """Entries that there is room for."""
        return len(self.tables[0])

    @property
    def plain_entry_nbytes(self) -> int:
        """Bytes of one entry as the model computes it: its key and its value."""
        return sum(self.widths) * self.dtype.itemsize

    @cached_property
    def is_even(self) -> bool:
        """Whether all segments have the same room, so that keys and values are plain `[S, capacity, d]` tensors."""
        return bool((self.capacities == self.capacities[0]).all())

    @property
    def is_level(self) -> bool:
        """Whether all segments have the same room and are filled to the same length."""
        return self._is_flush and self.is_even

    @cached_property
    def layout(self) -> Layout:
        """Index tables of the present arrangement."""
        return Layout.of(self.starts, self.capacities, self.device)

    @cached_property
    def splits(self) -> SplitTable:
        """The present arrangement cut into splits for the split kernel."""
        return SplitTable.of(self.capacities, self.device)

    @cached_property
    def bounds(self) -> SegmentBounds:
        """The present arrangement as varlen kernels want it."""
        return SegmentBounds.of(self.starts, self.capacities, self.device)

    def entries(self) -> torch.Tensor:
        """Indices of all entries in use, segment after segment, int64 on the device."""
        lengths = self.lengths
        first = np.repeat(self.starts - np.cumsum(lengths) + lengths, lengths)
        return torch.from_numpy(first + np.arange(len(first))).to(self.device)

    def pieces(self) -> tuple[Iterable[torch.Tensor], Iterable[torch.Tensor]]:
        """Keys and values in use, `[length, d]` for each segment: views, or read when they are asked for."""
        lengths = self.lengths
        sizes = np.stack([lengths, self.capacities - lengths], 1).ravel().tolist()
        return self.keys.split_with_sizes(sizes)[::2], self.values.split_with_sizes(sizes)[::2]

    def segments(self) -> list[Segment]:
        """What each segment holds."""
        biases: list[torch.Tensor | None] = [None] * self.num_segments
        if self.bias is not None:
            ends = self.starts + self.lengths
            biases = [self.bias[a:b] for a, b in zip(self.starts.tolist(), ends.tolist(), strict=True)]
        return [Segment(*parts) for parts in zip(*self.pieces(), biases, strict=True)]

    # -- change -----------------------------------------------------------------------------------------------------

    def append(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Add `T` entries to every segment: `keys` and `values` `[B, G, T, d]`."""
        count = keys.shape[2]
        if not self._announced:
            announce([self], count)
        self.written(count)
        where = self.last
        if count > 1:
            where = (where[:, None] + torch.arange(1 - count, 1, device=keys.device)).flatten()
        self._write(where, keys.reshape(-1, keys.shape[-1]), values.reshape(-1, values.shape[-1]))

    def written(self, count: int) -> None:
        """The `count` announced entries of every segment are being written, the last one of each at `last`."""
        assert self._announced == count
        self._announced = 0

    def move(self, target: torch.Tensor, source: torch.Tensor) -> None:
        """Let the entries `target` be what the entries `source` are, int64 `[k]` each, as they are held."""
        for table in self.tables:
            table[target] = table[source]

    def drop_last(self, over: torch.Tensor) -> None:
        """Let go of the last entry of the segments where `over` (bool `[S]`, on the device) says so."""
        dropped = over.int()
        self.length -= dropped
        self.last -= dropped

    def count(self, added: int) -> None:
        """Let the host's count follow the device's: entries that came to every segment (or left, if negative)."""
        self._added += added

    def make_room(self, count: int) -> None:
        """Lay the store out anew, each segment with room for `count` entries and the slack, unless there is room."""
        if count <= self.room:
            return
        tables, bias, old = self.tables, self.bias, self.entries()
        lengths = self.lengths
        self._allocate(bias is not None, lengths, lengths + count + self.slack)
        new = self.entries()
        for table, held in zip(self.tables, tables, strict=True):
            table.index_copy_(0, new, held[old])
        if bias is not None:
            assert self.bias is not None
            self.bias.index_copy_(0, new, bias[old])


def announce(stores: Sequence[RaggedStore], count: int) -> None:
    """Count `count` entries that are about to be appended to every store: two operations for all of them."""
    for store in stores:
        store.make_room(count)
        store.count(count)
        store._announced = count
    torch._foreach_add_([store.length for store in stores], count)
    torch._foreach_add_([store.last for store in stores], count)


def take_back(stores: Sequence[RaggedStore], count: int) -> None:
    """Let go of the last `count` entries of every segment of every store."""
    for store in stores:
        store.count(-count)
    torch._foreach_sub_([store.length for store in stores], count)
    torch._foreach_sub_([store.last for store in stores], count)


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

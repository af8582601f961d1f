"""What kernels need to know of a store's arrangement, made once and kept until the store is laid out again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from headprobe.compression.budgets import Ints

MIN_CHUNK, MAX_CHUNK = 64, 1024  # entries; powers of two
SPLITS_WANTED = 256  # a large GPU is full with them


@dataclass(frozen=True, eq=False)
class SplitTable:
    """Every segment cut into splits of one size, the work of the split kernel; all int32 on the device.

    `segment` `[C]`: the segment of each split; `number` `[C]`: its place among that segment's splits, which lie one
    behind the other, those of the largest segments first: they take longest. `joined` `[J]`: the segments with room for
    several splits, and `begins` `[J]` the first split of each. `size`: entries of a split. The table follows from the
    room of the segments alone, which the host knows, so that the work has a fixed shape; splits that are not in use yet
    end at once. Every segment has a split, even one without room: something must write its output.
    """

    size: int
    segment: torch.Tensor
    number: torch.Tensor
    joined: torch.Tensor
    begins: torch.Tensor

    def __len__(self) -> int:
        return self.segment.shape[0]

    @classmethod
    def of(cls, capacities: Ints, device: torch.device) -> SplitTable:
        """The table of segments with so much room."""
        size = split_size(int(capacities.sum()))
        order = np.argsort(-capacities, kind="stable")
        counts = np.maximum(-(-capacities[order] // size), 1)
        begins, several = np.cumsum(counts) - counts, counts > 1
        segment, number = np.repeat(order, counts), np.arange(counts.sum()) - np.repeat(begins, counts)
        tables = segment, number, order[several], begins[several]
        return cls(size, *[torch.tensor(table, dtype=torch.int32, device=device) for table in tables])


@dataclass(frozen=True, eq=False)
class SegmentBounds:
    """What varlen kernels need: `starts` int32 `[S + 1]`, all entries last; `ordinals` int32 `[S + 1]`, 0 to S.

    `longest`: entries that the largest segment has room for.
    """

    starts: torch.Tensor
    ordinals: torch.Tensor
    longest: int

    @classmethod
    def of(cls, starts: Ints, capacities: Ints, device: torch.device) -> SegmentBounds:
        """The bounds of segments that lie one behind the other."""
        ends = torch.tensor([*starts, capacities.sum()], dtype=torch.int32, device=device)
        return cls(ends, torch.arange(len(ends), dtype=torch.int32, device=device), int(capacities.max()))


def split_size(entries: int) -> int:
    """Entries of a split: the largest power of two that makes at least `SPLITS_WANTED` of a store, within limits."""
    return 1 << (min(max(entries // SPLITS_WANTED, MIN_CHUNK), MAX_CHUNK).bit_length() - 1)

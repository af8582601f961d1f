"""What kernels know of a store's arrangement."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from headprobe.compression.kernels.tables import SegmentBounds, SplitTable, split_size
from tests.compression.kernels.stores import random_store

CPU = torch.device("cpu")


def test_every_segment_is_cut_into_splits_of_one_size_the_largest_first() -> None:
    table = SplitTable.of(np.array([64, 65, 1, 200, 0]), CPU)
    assert (table.size, len(table)) == (64, 9)
    assert table.segment.tolist() == [3, 3, 3, 3, 1, 1, 0, 2, 4]
    assert table.number.tolist() == [0, 1, 2, 3, 0, 1, 0, 0, 0]
    assert (table.joined.tolist(), table.begins.tolist()) == ([3, 1], [0, 4])
    assert {t.dtype for t in (table.segment, table.number, table.joined, table.begins)} == {torch.int32}


@pytest.mark.parametrize(
    ("entries", "size"), [(1, 64), (32767, 64), (32768, 128), (65536, 256), (1 << 18, 1024), (1 << 24, 1024)]
)
def test_splits_grow_with_the_store_within_limits(entries: int, size: int) -> None:
    assert split_size(entries) == size


def test_bounds_are_the_starts_with_all_entries_behind_them() -> None:
    bounds = SegmentBounds.of(np.array([0, 3, 10]), np.array([3, 7, 2]), CPU)
    assert bounds.starts.tolist() == [0, 3, 10, 12]
    assert bounds.ordinals.tolist() == [0, 1, 2, 3]
    assert bounds.longest == 7


def test_tables_are_kept_until_the_store_is_laid_out_anew() -> None:
    store = random_store([3, 64], 1, slack=1)
    splits, bounds = store.splits, store.bounds
    new = torch.ones(1, 2, 1, 8)
    store.append(new, new)
    assert store.splits is splits
    assert store.bounds is bounds
    store.append(new, new)
    assert store.splits.segment.tolist() == [1, 1, 0]
    assert store.bounds.starts.tolist() == [0, *np.cumsum(store.capacities)]

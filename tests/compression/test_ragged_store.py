"""Flat keys and values that grow in place."""

from __future__ import annotations

from functools import cached_property

import torch

from headprobe.compression import ragged_store
from headprobe.compression.ragged_store import RaggedStore, announce, take_back
from tests.compression.kernels.stores import random_store


def test_appending_writes_behind_each_segment_and_grows_when_there_is_no_room() -> None:
    store = random_store([2, 4], 1, slack=2)
    expected = [store.keys[0:2].clone(), store.keys[4:8].clone()]
    for step in range(5):
        new = torch.full((1, 2, 1, 8), float(step))
        address = store.keys.data_ptr()
        store.append(new, new)
        assert (store.keys.data_ptr() == address) == (step not in (2,))
        expected = [torch.cat([e, new[0, 0]]) for e in expected]
        for index, wanted in enumerate(expected):
            start, length = int(store.starts[index]), int(store.lengths[index])
            torch.testing.assert_close(store.keys[start : start + length], wanted)
    assert store.length.tolist() == [7, 9]
    assert store.lengths.tolist() == [7, 9]


def held(store: RaggedStore) -> list[list[list[float]]]:
    return [[segment.keys.tolist(), segment.values.tolist()] for segment in store.segments()]


def test_announced_entries_are_counted_once_for_all_stores() -> None:
    stores, alone = ([random_store(lengths, 1, slack=2) for lengths in ([2, 4], [3, 1])] for _ in "ab")
    for step in range(4):
        new = torch.full((1, 2, 1, 8), float(step))
        announce(stores, 1)
        for store, other in zip(stores, alone, strict=True):
            store.append(new, new)
            other.append(new, new)
            assert held(store) == held(other)
            assert store.length.tolist() == store.lengths.tolist() == other.lengths.tolist()
            assert store.last.tolist() == (store.starts + store.lengths - 1).tolist()


def test_entries_taken_back_leave_nothing() -> None:
    store = random_store([2, 4], 1, slack=5)
    before = held(store)
    for step in range(3):
        store.append(torch.full((1, 2, 1, 8), float(step)), torch.ones(1, 2, 1, 8))
    take_back([store], 3)
    assert held(store) == before
    assert store.length.tolist() == store.lengths.tolist() == [2, 4]
    assert store.room == 5
    store.append(torch.zeros(1, 2, 2, 8), torch.zeros(1, 2, 2, 8))
    assert store.segments()[1].keys[4:].tolist() == [[0.0] * 8] * 2


def test_room_is_made_once_and_the_layout_gets_another_number() -> None:
    store = random_store([2, 4], 1, slack=2)
    before, number = held(store), store.layout_number
    assert store.layout.segment.tolist() == [0] * 4 + [1] * 6
    store.make_room(2)
    assert store.layout_number == number
    store.make_room(9)
    assert store.layout_number != number
    assert store.capacities.tolist() == [2 + 9 + 2, 4 + 9 + 2]
    assert store.layout.segment.tolist() == [0] * 13 + [1] * 15
    assert held(store) == before


def test_joined_stores_hold_all_segments_and_their_biases() -> None:
    """A bias in one of them makes zeros in the other."""
    plain, biased = random_store([2, 4], 1), random_store([1, 3], 1, biased=True)
    joined = RaggedStore.joined([plain, biased], slack=3)
    assert held(joined) == held(plain) + held(biased)
    assert joined.batch == 2
    assert joined.capacities.tolist() == [5, 7, 4, 6]
    biases = [segment.bias.tolist() for segment in joined.segments() if segment.bias is not None]
    assert biases[:2] == [[0.0] * 2, [0.0] * 4]
    assert biases[2:] == [segment.bias.tolist() for segment in biased.segments() if segment.bias is not None]
    assert RaggedStore.joined([plain, biased], slack=None).capacities.tolist() == [
        *plain.capacities.tolist(),
        *biased.capacities.tolist(),
    ]


def test_all_that_is_worked_out_for_an_arrangement_is_forgotten_with_it() -> None:
    worked_out = {name for name, kind in vars(RaggedStore).items() if isinstance(kind, cached_property)}
    assert set(ragged_store.ARRANGEMENT) == worked_out

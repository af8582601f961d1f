"""Stores of int8 and int4 entries: what they hold, how much it takes, and attention over it."""

from __future__ import annotations

import pytest
import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.reference import weigh_by_segment, weigh_masked
from headprobe.compression.kv_cache_dtypes import FORMATS
from headprobe.compression.quantized_store import QuantizedStore, store_of
from headprobe.compression.ragged_store import RaggedStore, Segment, take_back
from tests.compression.kernels.stores import LAYOUTS, plain, plain_weights, poison, query_for, random_store
from tests.compression.plain_quantization import plain_nbytes, plainly_held

DTYPES = tuple(FORMATS)


def quantized_store(
    lengths: list[int], batch: int, kv_cache_dtype: str, slack: int = 5, biased: bool = False
) -> QuantizedStore:
    """As `random_store`; the rubbish in its slack are scales that would drown everything."""
    plain = random_store(lengths, batch, slack=slack, biased=biased)
    store = store_of(plain.segments(), batch, [n + slack for n in lengths], slack, kv_cache_dtype)
    assert isinstance(store, QuantizedStore)
    unused = store.layout.offset >= store.length[store.layout.segment]
    for table in store.tables:
        table[unused] = 99
    return store


def as_numbers(store: RaggedStore) -> RaggedStore:
    """A plain store of the numbers that a quantized one stands for, with rubbish in its slack."""
    numbers = RaggedStore(store.segments(), store.batch, store.capacities, store.slack)
    poison(numbers, 1e4)
    return numbers


def held(store: RaggedStore) -> list[list[list[list[float]]]]:
    return [[segment.keys.tolist(), segment.values.tolist()] for segment in store.segments()]


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_it_holds_each_entry_as_the_definition_says_in_so_many_bytes(kv_cache_dtype: str) -> None:
    lengths, width, value_width = [3, 9, 1, 6], 48, 33
    generator = torch.Generator().manual_seed(2)
    segments = [
        Segment(torch.randn(n, width, generator=generator), torch.randn(n, value_width, generator=generator))
        for n in lengths
    ]
    store = store_of(segments, 2, [n + 4 for n in lengths], 4, kv_cache_dtype)
    for segment, found in zip(segments, store.segments(), strict=True):
        assert torch.equal(found.keys, plainly_held(segment.keys, kv_cache_dtype))
        assert torch.equal(found.values, plainly_held(segment.values, kv_cache_dtype))
    entry = plain_nbytes(width, kv_cache_dtype) + plain_nbytes(value_width, kv_cache_dtype)
    assert (store.entry_nbytes, store.nbytes) == (entry, (19 + 16) * entry)
    scales = (2 + 2) * 2 * (2 if kv_cache_dtype == "int4" else 1)
    assert store.scale_nbytes == (19 + 16) * scales
    assert store.plain_entry_nbytes == (width + value_width) * 4
    tensors = [t for t in vars(store).values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
    assert tensors == []  # nothing holds them as plain numbers


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_appending_growing_and_taking_back_never_changes_what_stays(kv_cache_dtype: str) -> None:
    store = quantized_store([2, 4], 1, kv_cache_dtype, slack=2)
    wanted = [[segment.keys, segment.values] for segment in store.segments()]
    for step in range(5):
        new = torch.randn(1, 2, 1 + step % 2, 8, generator=torch.Generator().manual_seed(step))
        store.append(new, -new)
        wanted = [
            [
                torch.cat([rows, plainly_held(sign * own, kv_cache_dtype)])
                for rows, sign in zip(both, (1, -1), strict=True)
            ]
            for both, own in zip(wanted, new[0], strict=True)
        ]
    assert held(store) == [[keys.tolist(), values.tolist()] for keys, values in wanted]
    take_back([store], 3)
    assert held(store) == [[keys[:-3].tolist(), values[:-3].tolist()] for keys, values in wanted]


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_moving_and_joining_copy_entries_as_they_are_held(kv_cache_dtype: str) -> None:
    first, second = (
        quantized_store(lengths, 1, kv_cache_dtype, biased=n == 1) for n, lengths in enumerate(([3, 2], [1, 4]))
    )
    joined = QuantizedStore.joined([first, second], slack=1)
    assert held(joined) == held(first) + held(second)
    assert joined.nbytes == (10 + 4) * first.entry_nbytes
    assert joined.bias is not None
    before = first.segments()
    first.move(torch.tensor([0, 8]), torch.tensor([2, 8]))
    after = first.segments()
    assert torch.equal(after[0].keys, before[0].keys[[2, 1, 2]])
    assert torch.equal(after[0].values, before[0].values[[2, 1, 2]])
    assert torch.equal(after[1].keys, before[1].keys)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize(("lengths", "batch"), LAYOUTS)
@pytest.mark.parametrize("kind", ["plain", "capped", "sinks", "biased"])
@pytest.mark.parametrize("count", [1, 3])
def test_attention_is_that_over_the_numbers_that_the_entries_stand_for(
    kv_cache_dtype: str, lengths: list[int], batch: int, kind: str, count: int
) -> None:
    store = quantized_store(lengths, batch, kv_cache_dtype, biased=kind == "biased")
    store.append(*(torch.randn(2, batch, store.num_kv_heads, count, 8).unbind(0)))
    query = query_for(store, 2, count)
    sinks = torch.linspace(-1, 1, query.shape[1]) if kind == "sinks" else None
    shape = AttentionShape(0.3, 2.0 if kind == "capped" else None, sinks)
    numbers = as_numbers(store)
    wanted = plain(query, numbers, shape)
    for weigh in (weigh_by_segment, weigh_masked):
        torch.testing.assert_close(weigh(query, store, shape)[0], wanted)
        if count == 1:
            given = weigh(query, store, shape, with_weights=True)[1]
            assert given is not None
            torch.testing.assert_close(given, plain_weights(query, numbers, shape))

"""The torch kernel against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels import reference
from headprobe.compression.kernels.reference import torch_attention, weigh_by_segment, weigh_masked
from tests.compression.kernels.stores import LAYOUTS, plain, query_for, random_store


@pytest.mark.parametrize(("lengths", "batch"), LAYOUTS)
@pytest.mark.parametrize("group", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["plain", "softcap", "sinks", "bias"])
def test_the_torch_kernel_equals_plain_loops(lengths: list[int], batch: int, group: int, count: int, kind: str) -> None:
    store = random_store([n + 2 for n in lengths], batch, biased=kind == "bias")
    query = query_for(store, group, count)
    sinks = torch.linspace(-1, 1, query.shape[1]) if kind == "sinks" else None
    shape = AttentionShape(0.3, 1.5 if kind == "softcap" else None, sinks)
    wanted = plain(query, store, shape)
    torch.testing.assert_close(torch_attention(query, store, shape), wanted, atol=1e-5, rtol=1e-5)
    for way in (weigh_masked, weigh_by_segment):
        torch.testing.assert_close(way(query, store, shape)[0], wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("lengths", "batch"), LAYOUTS)
@pytest.mark.parametrize("way", [weigh_masked, weigh_by_segment])
def test_weights_of_one_query_are_averaged_over_its_group(way: Any, lengths: list[int], batch: int) -> None:
    store = random_store(lengths, batch)
    query = query_for(store, 2, 1)
    _, weights = way(query, store, AttentionShape(0.3), with_weights=True)
    assert weights is not None
    for index, (start, length) in enumerate(zip(store.starts, store.lengths, strict=True)):
        keys = store.keys[start : start + length]
        own = query.view(store.num_segments, 2, -1)[index]
        expected = torch.softmax(own @ keys.T * 0.3, -1).mean(0)
        torch.testing.assert_close(weights[start : start + length], expected, atol=1e-6, rtol=1e-5)
        assert (weights[start + length : start + store.capacities[index]] == 0).all()


def test_many_queries_go_in_blocks_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    store = random_store([9, 14], 1)
    query = query_for(store, 2, 6)
    whole = weigh_masked(query, store, AttentionShape(0.3))[0]
    monkeypatch.setattr(reference, "SCORE_ELEMENTS", 1)
    torch.testing.assert_close(weigh_masked(query, store, AttentionShape(0.3))[0], whole)

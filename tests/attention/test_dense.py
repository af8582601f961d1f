"""Attention weights and outputs against plain loops over heads, queries and keys."""

from __future__ import annotations

import math

import pytest
import torch

from headprobe.attention import dense
from headprobe.attention.dense import attention_weights, explicit_attention, fused_attention

HEADS = [(4, 4), (4, 2), (6, 1)]


def random_states(heads: int, groups: int, rows: int, keys: int, dim: int = 8, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(1, heads, rows, dim), (1, groups, keys, dim), (1, groups, keys, dim)]
    return [torch.randn(shape, generator=generator) for shape in shapes]


def loop_weights(query, key, seen, scaling, softcap=None, sinks=None):  # type: ignore[no-untyped-def]
    """Softmax rows one number at a time; `seen(t, j)` says whether row t may look at key j."""
    _, heads, rows, _ = query.shape
    groups, keys = key.shape[1], key.shape[2]
    weights = torch.zeros(1, heads, rows, keys)
    for h in range(heads):
        for t in range(rows):
            scores = {}
            for j in range(keys):
                if seen(t, j):
                    score = float(query[0, h, t] @ key[0, h * groups // heads, j]) * scaling
                    scores[j] = math.tanh(score / softcap) * softcap if softcap else score
            total = sum(math.exp(s) for s in scores.values()) + (math.exp(float(sinks[h])) if sinks is not None else 0)
            for j, score in scores.items():
                weights[0, h, t, j] = math.exp(score) / total
    return weights


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize(("rows", "keys"), [(1, 1), (1, 9), (3, 9), (9, 9)])
@pytest.mark.parametrize("softcap", [None, 1.5])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_weights_equal_a_plain_loop(
    heads: int, groups: int, rows: int, keys: int, softcap: float | None, with_sinks: bool
) -> None:
    query, key, _ = random_states(heads, groups, rows, keys)
    sinks = torch.randn(heads, generator=torch.Generator().manual_seed(1)) if with_sinks else None
    fast = attention_weights(query, key, None, scaling=0.4, softcap=softcap, sinks=sinks)
    slow = loop_weights(query, key, lambda t, j: j <= t + keys - rows, 0.4, softcap, sinks)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


def test_a_mask_decides_what_a_row_sees() -> None:
    query, key, _ = random_states(4, 2, 3, 7)
    mask = torch.rand(1, 1, 3, 7, generator=torch.Generator().manual_seed(2)) > 0.4
    mask[..., 0] = True
    fast = attention_weights(query, key, mask, scaling=1.0)
    slow = loop_weights(query, key, lambda t, j: bool(mask[0, 0, t, j]), 1.0)
    torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)


def test_large_problems_go_one_kv_head_at_a_time_with_the_same_result(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key, _ = random_states(4, 2, 3, 50)
    whole = attention_weights(query, key, None, scaling=0.3)
    monkeypatch.setattr(dense, "ROW_BLOCK_ELEMENTS", 10)
    torch.testing.assert_close(attention_weights(query, key, None, scaling=0.3), whole)


@pytest.mark.parametrize(("heads", "groups"), HEADS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 11), (4, 11), (11, 11), (10, 23)])
@pytest.mark.parametrize("block", [1, 4, 256])
@pytest.mark.parametrize(("masked", "windowed"), [(False, False), (True, True), (True, False), (False, True)])
def test_outputs_equal_weights_times_values(
    monkeypatch: pytest.MonkeyPatch,
    heads: int,
    groups: int,
    queries: int,
    keys: int,
    block: int,
    masked: bool,
    windowed: bool,
) -> None:
    monkeypatch.setattr(dense, "QUERY_BLOCK", block)
    query, key, value = random_states(heads, groups, queries, keys)
    causal = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
    window = causal & ~torch.ones_like(causal).tril(keys - queries - 4)
    mask = window[None, None] if masked else None
    weights = attention_weights(query, key, (window if masked or windowed else causal)[None, None], scaling=0.5)
    expected = weights @ value.repeat_interleave(heads // groups, 1)
    for out in (
        fused_attention(query, key, value, mask, 0.5, 4 if windowed else None),
        explicit_attention(query, key, value, mask, 0.5, None, None, 4 if windowed else None),
    ):
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("queries", "keys"), [(1, 11), (4, 11), (11, 11)])
@pytest.mark.parametrize("value_width", [3, 8, 13])
@pytest.mark.parametrize("window", [None, 4])
def test_values_may_be_narrower_or_wider_than_keys(
    queries: int, keys: int, value_width: int, window: int | None
) -> None:
    query, key, _ = random_states(4, 2, queries, keys)
    value = torch.randn(1, 2, keys, value_width, generator=torch.Generator().manual_seed(3))
    weights = loop_weights(query, key, lambda t, j: 0 <= t + keys - queries - j < (window or keys), 0.5)
    expected = weights @ value.repeat_interleave(2, 1)
    for out in (
        fused_attention(query, key, value, None, 0.5, window),
        explicit_attention(query, key, value, None, 0.5, None, None, window),
    ):
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


def test_a_mask_of_numbers_is_added_to_each_heads_scores() -> None:
    query, key, value = random_states(4, 2, 3, 7)
    mask = torch.randn(1, 4, 3, 7, generator=torch.Generator().manual_seed(4))
    mask[0, 2, 1, 5] = float("-inf")
    scores = query @ key.repeat_interleave(2, 1).transpose(2, 3) * 0.5 + mask
    expected = torch.softmax(scores, -1)
    torch.testing.assert_close(attention_weights(query, key, mask, scaling=0.5), expected, atol=1e-6, rtol=1e-5)
    for out in (
        fused_attention(query, key, value, mask, 0.5),
        explicit_attention(query, key, value, mask, 0.5, None, None),
    ):
        torch.testing.assert_close(out, expected @ value.repeat_interleave(2, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 1000, 4096])
def test_on_a_gpu_grouped_heads_take_no_memory_for_all_scores(dtype: torch.dtype, rows: int) -> None:
    query, key, value = (states.to("cuda", dtype) for states in random_states(8, 2, rows, 4096, dim=64))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    given = fused_attention(query, key, value, None, 0.125)
    assert torch.cuda.max_memory_allocated() - before < 8 * rows * 4096 * 4 / 2 + (64 << 20)
    wanted = explicit_attention(query.float(), key.float(), value.float(), None, 0.125, None, None)
    bound = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(given.float(), wanted, atol=bound, rtol=bound)

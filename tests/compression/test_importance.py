"""Sums of attention, against the whole matrix; and memory that stays linear in the prompt."""

from __future__ import annotations

import pytest
import torch

from headprobe.compression import importance
from headprobe.compression.importance import AttentionShape, Observation, block_sums, column_sums, value_norms
from headprobe.compression.selectors import History, Window
from headprobe.errors import OptionError
from headprobe.models.devices import PeakMemory


def states(heads: int, groups: int, tokens: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, tokens, 8, generator=generator) for n in (heads, groups, groups))
    return q, k, v


def whole_matrix(query: torch.Tensor, key: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """`[G, n, n]`: causal softmax, averaged over each group."""
    heads, tokens, _ = query.shape
    scores = query @ key.repeat_interleave(heads // key.shape[0], 0).transpose(1, 2) * shape.scaling
    if shape.softcap:
        scores = torch.tanh(scores / shape.softcap) * shape.softcap
    weights = torch.softmax(scores.masked_fill(~torch.ones(tokens, tokens).tril().bool(), -torch.inf), -1)
    return weights.view(key.shape[0], -1, tokens, tokens).mean(1)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("tile", [1, 200, 1 << 24])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_column_sums_equal_those_of_the_whole_matrix(
    monkeypatch: pytest.MonkeyPatch, heads: int, groups: int, tile: int, softcap: float | None
) -> None:
    monkeypatch.setattr(importance, "TILE_ELEMENTS", tile)
    query, key, _ = states(heads, groups, 37)
    shape = AttentionShape(0.4, softcap)
    whole = whole_matrix(query, key, shape)
    torch.testing.assert_close(column_sums(query, key, shape), whole.sum(1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(column_sums(query[:, -5:], key, shape), whole[:, -5:].sum(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tile", [1, 1 << 19])
def test_sinks_take_their_share_of_column_sums(monkeypatch: pytest.MonkeyPatch, tile: int) -> None:
    monkeypatch.setattr(importance, "TILE_ELEMENTS", tile)
    query, key, _ = states(4, 2, 37)
    sinks = torch.tensor([0.5, -1.0, 2.0, 0.0])
    scores = (query @ key.repeat_interleave(2, 0).transpose(1, 2)) * 0.4
    scores = scores.masked_fill(~torch.ones(37, 37).tril().bool(), -torch.inf)
    weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    wanted = weights.view(2, 2, 37, 37).mean(1).sum(1)
    torch.testing.assert_close(column_sums(query, key, AttentionShape(0.4, None, sinks)), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tokens", [3, 4, 11, 12, 13, 30])
def test_blocks_of_queries_stand_in_their_columns(tokens: int) -> None:
    query, key, value = states(4, 2, tokens)
    shape = AttentionShape(0.4)
    selector = History(queries=8, keep=2, block=4)
    observation = Observation(query[:, -selector.num_queries :], key, value, shape)
    whole = whole_matrix(query, key, shape)
    expected = torch.zeros(2, tokens, 3)
    for block in range(max(0, (tokens - 1) // 4 - 2), (tokens - 1) // 4 + 1):
        expected[:, :, block % 3] = whole[:, block * 4 : block * 4 + 4].sum(1)
    torch.testing.assert_close(block_sums(observation, 4, 3), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(selector.scores(observation), expected, atol=1e-5, rtol=1e-5)


def test_pooling_spreads_a_peak_to_its_neighbours_but_not_into_the_window() -> None:
    query, key, value = states(2, 1, 40)
    plain = Window(window=4, pool=1).scores(Observation(query[:, -4:], key, value, AttentionShape(0.4)))[0, :, 0]
    pooled = Window(window=4, pool=5).scores(Observation(query[:, -4:], key, value, AttentionShape(0.4)))[0, :, 0]
    for j in range(36):
        assert pooled[j] == plain[max(0, j - 2) : min(36, j + 3)].max()
    assert (pooled[36:] == 0).all()


def test_value_norms_are_sums_of_magnitudes() -> None:
    assert value_norms(torch.tensor([[1.0, -2.0], [0.0, 0.5]])).tolist() == [3.0, 0.5]


def test_options_out_of_range_are_quoted() -> None:
    with pytest.raises(OptionError, match="pool is 4, need an odd number"):
        Window(pool=4)
    with pytest.raises(OptionError, match="the window is 0 queries, need at least 1"):
        Window(window=0)
    with pytest.raises(OptionError, match="a history of 10 queries is not a multiple of blocks of 4"):
        History(queries=10, block=4)


@pytest.mark.slow
def test_memory_of_column_sums_is_linear_at_32k() -> None:
    """The whole matrix would take 8 GiB; the tiles may take 1/16 of that."""
    query, key, _ = (state[..., :4] for state in states(2, 1, 32 * 1024))
    peak = PeakMemory(torch.device("cpu"))
    peak.start()
    column_sums(query, key, AttentionShape(0.5))
    used = peak.bytes()
    assert used is not None
    assert used < 512 * 2**20

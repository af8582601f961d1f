"""What the queries of a prompt gave to each of its entries, in one layer, without ever building an n x n matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from headprobe.attention.dense import attention_weights, causal_end
from headprobe.compression.kernels.source import TRITON

TILE_ELEMENTS = 1 << 24  # attention weights that are held at a time while columns are summed
CACHED_ELEMENTS = 1 << 19  # the same on a CPU: what stays in its cache between the passes over them
LEAST_ROWS = 16  # queries of a tile: with fewer, reading the keys again for each tile takes the time


@dataclass(frozen=True)
class AttentionShape:
    """How a layer turns products of queries and keys into scores: scale, Gemma-2's softcap, gpt-oss's sinks `[H]`."""

    scaling: float
    softcap: float | None = None
    sinks: torch.Tensor | None = None


@dataclass(frozen=True, eq=False)
class Observation:
    """What a selector may look at, for one sequence in one layer once its whole prompt has been read.

    `key` and `value` `[G, n, d]`; `query` `[H, R, d]`, the last `R` queries; `column_sums` `[G, n]`, float32: the
    attention that each entry got from all queries, averaged over the group (only where the selector asked for it).
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    shape: AttentionShape
    column_sums: torch.Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.key.shape[1]

    def rows(self, count: int) -> torch.Tensor:
        """Softmax rows of the last `count` queries, averaged over each group's query heads: `[G, count, n]`."""
        weights = _weights(self.query[:, -count:], self.key, self.shape)
        return _group_mean(weights, self.key.shape[0])


def column_sums(query: torch.Tensor, key: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """Attention that each key got from the given queries, summed over them, averaged over groups: `[G, K]` float32.

    `query` `[H, T, d]` are the last `T` of the `K` positions of `key` `[G, K, d]`. Rows are computed in tiles, so that
    memory stays linear in K; on a GPU where triton is installed by a kernel that holds them in registers only.
    """
    if key.is_cuda and TRITON.fault() is None:
        from headprobe.compression.kernels.columns import fused_column_sums  # triton, which not every machine has

        return fused_column_sums(query, key, shape.scaling, shape.softcap, shape.sinks)
    heads, queries, _ = query.shape
    groups, keys, _ = key.shape
    sums = torch.zeros(groups, keys, dtype=torch.float32, device=key.device)
    elements = min(CACHED_ELEMENTS, TILE_ELEMENTS) if key.device.type == "cpu" else TILE_ELEMENTS
    tile = max(LEAST_ROWS, elements // (heads * keys))
    scaled, columns = query.float() * shape.scaling, key.float().transpose(1, 2)
    for start in range(0, queries, tile):
        end = min(start + tile, queries)
        seen = keys - queries + end
        sums[:, :seen] += _tile_sums(scaled[:, start:end], columns[:, :, :seen], shape)
    return sums / (heads // groups)


def _tile_sums(scaled: torch.Tensor, columns: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """Attention `[G, K]` that `columns` `[G, d, K]` get from the last `T` positions, whose queries are `scaled`."""
    heads, rows, width = scaled.shape
    groups, _, keys = columns.shape
    scores = (scaled.reshape(groups, -1, width) @ columns).view(heads, rows, keys)
    if shape.softcap is not None:
        scores = scores.div_(shape.softcap).tanh_().mul_(shape.softcap)
    scores[:, :, keys - rows :].masked_fill_(~causal_end(rows, rows, scores.device), float("-inf"))
    if shape.sinks is not None:
        extra = shape.sinks.float().view(-1, 1, 1).expand(-1, rows, 1)
        weights = torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]
    else:
        weights = torch.softmax(scores, -1)
    return weights.reshape(groups, -1, keys).sum(1)


def block_sums(observation: Observation, block: int, count: int) -> torch.Tensor:
    """As `column_sums` of the last queries, each block of `block` queries apart: `[G, n, count]` float32.

    Blocks count from the sequence's first query; block `b` stands in column `b % count`, and only the last `count`
    blocks, of which the last may be incomplete, are looked at.
    """
    tokens = observation.num_tokens
    last = (tokens - 1) // block
    sums = torch.zeros(observation.key.shape[0], tokens, count, dtype=torch.float32, device=observation.key.device)
    first_held = tokens - observation.query.shape[1]
    for index in range(max(0, last - count + 1), last + 1):
        start, end = index * block, min((index + 1) * block, tokens)
        query = observation.query[:, start - first_held : end - first_held]
        sums[:, :end, index % count] = column_sums(query, observation.key[:, :end], observation.shape)
    return sums


def value_norms(value: torch.Tensor) -> torch.Tensor:
    """L1 norms of values `[..., d]`, float32 `[...]` (VATP, arXiv 2406.12335)."""
    return value.abs().sum(-1, dtype=torch.float32)


def _weights(query: torch.Tensor, key: torch.Tensor, shape: AttentionShape) -> torch.Tensor:
    """Causal softmax rows `[H, T, K]` of the last `T` positions."""
    return attention_weights(
        query[None], key[None], None, scaling=shape.scaling, softcap=shape.softcap, sinks=shape.sinks
    )[0]


def _group_mean(weights: torch.Tensor, groups: int) -> torch.Tensor:
    """`[H, ...] -> [G, ...]`: the mean over the query heads that share a KV head."""
    return weights.view(groups, -1, *weights.shape[1:]).mean(1)

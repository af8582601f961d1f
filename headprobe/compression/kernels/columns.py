"""Triton kernels for the attention that keys get, summed over queries: scores live in registers only, never in memory.

Two passes: the log-sum-exp of each query's row, then for each block of keys the sum of its columns over all queries.
Every number is written by one program, so results do not depend on the order in which programs run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from headprobe.compression.kernels.device import LARGE, on_its_device, shared_bytes

LOG2_E = tl.constexpr(1.4426950408889634)


@on_its_device
def fused_column_sums(
    query: torch.Tensor, key: torch.Tensor, scaling: float, softcap: float | None, sinks: torch.Tensor | None
) -> torch.Tensor:
    """`[G, K]` float32 as `importance.column_sums`, from `query` `[H, T, d]` and `key` `[G, K, d]`."""
    heads, queries, width = query.shape
    groups, keys, _ = key.shape
    lse = torch.empty(heads, queries, dtype=torch.float32, device=key.device)
    sums = torch.empty(groups, keys, dtype=torch.float32, device=key.device)
    wide = key.dtype == torch.float32
    block = block_size(width, wide, shared_bytes(key.device))
    shared: dict[str, Any] = {
        "group_size": heads // groups, "width": width, "padded": max(16, triton.next_power_of_2(width)),
        "row_block": block, "column_block": block, "capped": softcap is not None, "exact": wide,
        "num_warps": 8 if block == 128 else 4,
    }  # fmt: skip
    query, key = (t if t.stride(2) == 1 else t.contiguous() for t in (query, key))
    strides = (*query.stride()[:2], *key.stride()[:2])
    numbers = (queries, keys, scaling, 1.0 if softcap is None else softcap)
    extra = lse if sinks is None else sinks.float()
    rows = _row_kernel[(triton.cdiv(queries, block), heads)]
    rows(query, key, lse, extra, *strides, *numbers, with_sinks=sinks is not None, **shared)
    _column_kernel[(triton.cdiv(keys, block), groups)](query, key, lse, sums, *strides, *numbers, **shared)
    return sums


def block_size(width: int, wide: bool, shared: int) -> int:
    """Rows and columns of a block of scores, for keys of this `width`, `wide` in float32, and `shared` bytes of memory
    that a program may take."""
    if wide:  # products in full precision, for which registers run out soon
        return 32 if width <= 64 else 16
    if width > 128:
        return 32
    return 128 if shared >= LARGE or width <= 64 else 64


@triton.jit  # type: ignore[untyped-decorator]
def _scores(rows, columns, scaling, softcap, capped: tl.constexpr, exact: tl.constexpr):  # type: ignore[no-untyped-def]
    """Scores in base 2 of `rows` `[M, d]` and `columns` `[d, N]`."""
    scores = tl.dot(rows, columns, input_precision="ieee" if exact else None) * scaling
    if capped:
        scores = softcap * (2.0 * tl.sigmoid(2.0 * scores / softcap) - 1.0)
    return scores * LOG2_E


@triton.jit  # type: ignore[untyped-decorator]
def _row_kernel(  # type: ignore[no-untyped-def]
    query, key, lse, sinks, query_head, query_row, key_head, key_row, queries, keys, scaling, softcap,
    group_size: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, row_block: tl.constexpr,
    column_block: tl.constexpr, capped: tl.constexpr, exact: tl.constexpr, with_sinks: tl.constexpr,
):  # fmt: skip
    """The log-sum-exp in base 2 of a block of rows of one query head; the longest rows are begun first."""
    head = tl.program_id(1).to(tl.int64)
    row = (tl.num_programs(0) - 1 - tl.program_id(0)) * row_block + tl.arange(0, row_block)
    wide = tl.arange(0, padded)
    rows = tl.load(
        query + head * query_head + row[:, None].to(tl.int64) * query_row + wide[None, :],
        mask=(row < queries)[:, None] & (wide < width)[None, :], other=0.0,
    )  # fmt: skip
    last = row + keys - queries
    most = tl.full([row_block], float("-inf"), tl.float32)
    total = tl.zeros([row_block], tl.float32)
    if with_sinks:
        most = tl.zeros([row_block], tl.float32) + tl.load(sinks + head) * LOG2_E
        total += 1.0
    end = tl.minimum(keys, tl.max(last) + 1)
    for start in range(0, end, column_block):
        column = start + tl.arange(0, column_block)
        columns = tl.load(
            key + head // group_size * key_head + column[None, :].to(tl.int64) * key_row + wide[:, None],
            mask=(column < keys)[None, :] & (wide < width)[:, None], other=0.0,
        )  # fmt: skip
        scores = _scores(rows, columns, scaling, softcap, capped, exact)
        scores = tl.where(column[None, :] <= last[:, None], scores, float("-inf"))
        above = tl.maximum(most, tl.max(scores, 1))
        total = total * tl.exp2(most - above) + tl.sum(tl.exp2(scores - above[:, None]), 1)
        most = above
    tl.store(lse + head * queries + row, most + tl.log2(total), mask=row < queries)


@triton.jit  # type: ignore[untyped-decorator]
def _column_kernel(  # type: ignore[no-untyped-def]
    query, key, lse, sums, query_head, query_row, key_head, key_row, queries, keys, scaling, softcap,
    group_size: tl.constexpr, width: tl.constexpr, padded: tl.constexpr, row_block: tl.constexpr,
    column_block: tl.constexpr, capped: tl.constexpr, exact: tl.constexpr,
):  # fmt: skip
    """The columns of one block of keys of one KV head, summed over all queries of its group that see them."""
    group = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * column_block
    column = first + tl.arange(0, column_block)
    wide = tl.arange(0, padded)
    columns = tl.load(
        key + group * key_head + column[None, :].to(tl.int64) * key_row + wide[:, None],
        mask=(column < keys)[None, :] & (wide < width)[:, None], other=0.0,
    )  # fmt: skip
    total = tl.zeros([column_block], tl.float32)
    begin = tl.maximum(0, first - (keys - queries)) // row_block * row_block
    for member in range(group_size):
        head = group * group_size + member
        for start in range(begin, queries, row_block):
            row = start + tl.arange(0, row_block)
            rows = tl.load(
                query + head * query_head + row[:, None].to(tl.int64) * query_row + wide[None, :],
                mask=(row < queries)[:, None] & (wide < width)[None, :], other=0.0,
            )  # fmt: skip
            norm = tl.load(lse + head * queries + row, mask=row < queries, other=float("inf"))
            scores = _scores(rows, columns, scaling, softcap, capped, exact) - norm[:, None]
            seen = column[None, :] <= (row + keys - queries)[:, None]
            total += tl.sum(tl.exp2(tl.where(seen, scores, float("-inf"))), 0)
    tl.store(sums + group * keys + column, total / group_size, mask=column < keys)

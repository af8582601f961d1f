"""Ragged attention in Triton, with every segment cut into splits: one long head never holds up the rest.

One program computes a (split, block of rows) with its own largest score, sum and output in float32 (split-K, as in
flash decoding, https://crfm.stanford.edu/2023/10/12/flashdecoding.html). Most segments have one split, whose program
writes the output itself; a second, small kernel joins those of the others. All shapes follow from the room of the
segments, which the host knows: nothing waits for the device, and a step can be captured as a CUDA graph once it has run
(the first run compiles, and makes the store's split table).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.device import LARGE, on_its_device, shared_bytes
from headprobe.compression.ragged_store import RaggedStore

TILE_BYTES = 1 << 15  # keys and values that a program loads at a time; one or two such tiles are in flight
JOINED_AT_ONCE = 32  # splits
PARTIAL_ELEMENTS = 1 << 24  # float32 outputs of splits that are held at a time
MAX_ROWS = 64  # rows of a program
MAX_FULL_ROWS = 16  # the same in float32, whose products no tensor core takes in full: with more, registers run out
MOST_PROGRAMS = (1 << 16) - 1  # in the second dimension of a launch, by CUDA: one for each row where splits are joined


@on_its_device
def split_attention(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> torch.Tensor:
    """Output `[B, H, T, d_v]`. Products are taken in the store's type (float32 in full), sums in float32."""
    count = query.shape[2]
    splits, group = len(store.splits), query.shape[1] // store.num_kv_heads
    held = PARTIAL_ELEMENTS // (splits * group * store.values.shape[-1])
    block = max(1, min(held, MOST_PROGRAMS // group))
    outputs = [
        _attend(query[:, :, at : at + block], store, shape, ahead=max(0, count - at - block))[0]
        for at in range(0, count, block)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, 2)


@on_its_device
def split_weigh(query: torch.Tensor, store: RaggedStore, shape: AttentionShape) -> tuple[torch.Tensor, torch.Tensor]:
    """`split_attention` of one query (T = 1), and its weights `[total]` float32, averaged over each group's heads."""
    out, scores, levels = _attend(query, store, shape, ahead=0, weighed=True)
    assert scores is not None
    assert levels is not None
    return out, _weights(scores, levels, store)


@dataclass(frozen=True)
class Tiling:
    """Sizes that the programs are compiled for.

    `tile` entries by `rows` rows at a time, keys and values filled up to `key_pad` and `value_pad`: powers of two, each
    of at least the 16 that a tensor core takes. `stages` of a program's loads.
    """

    tile: int
    rows: int
    key_pad: int
    value_pad: int
    stages: int

    @classmethod
    def of(cls, store: RaggedStore, rows: int) -> Tiling:
        """The tiling for this many rows per segment."""
        key_pad, value_pad = (_padded(t.shape[-1]) for t in (store.keys, store.values))
        most = TILE_BYTES // ((key_pad + value_pad) * store.keys.element_size())
        tile = 1 << (max(most, 16).bit_length() - 1)  # widths may differ, and then `most` is no power of two
        most_rows = MAX_FULL_ROWS if store.keys.dtype == torch.float32 else MAX_ROWS
        stages = 3 if store.keys.dtype != torch.float32 and shared_bytes(store.device) >= LARGE else 2
        return cls(min(tile, store.splits.size, 64), min(_padded(rows), most_rows), key_pad, value_pad, stages)


def _attend(
    query: torch.Tensor, store: RaggedStore, shape: AttentionShape, *, ahead: int, weighed: bool = False
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Queries with `ahead` newer tokens behind them: output, and if `weighed` scores `[rows, total]` and levels."""
    programs = _programs()
    batch, heads, count, _ = query.shape
    groups, width = store.num_kv_heads, store.values.shape[-1]
    rows, splits, entries = heads // groups * count, store.splits, store.keys.shape[0]
    tiling = Tiling.of(store, rows)
    query = query.to(store.keys.dtype).contiguous()
    partial = query.new_empty(len(splits), rows, width, dtype=torch.float32)
    peak, total = (query.new_empty(len(splits), rows, dtype=torch.float32) for _ in range(2))
    scores = query.new_empty(rows, entries, dtype=torch.float32) if weighed else None
    levels = query.new_empty(store.num_segments, rows, dtype=torch.float32) if weighed else None
    out = query.new_empty(batch, heads, count, width)
    common = {
        "split_size": splits.size, "value_width": width, "value_pad": tiling.value_pad,
        "sunk": shape.sinks is not None, "weighed": weighed,
    }  # fmt: skip
    programs.attend_split[len(splits), -(-rows // tiling.rows)](
        query, store.keys, store.values, store.bias, shape.sinks, store.start, store.length, splits.segment,
        splits.number, partial, peak, total, out, scores, levels, float(shape.scaling), float(shape.softcap or 1.0),
        rows, count, ahead, entries, groups, tile=tiling.tile, row_block=tiling.rows, key_width=query.shape[-1],
        key_pad=tiling.key_pad, capped=shape.softcap is not None, biased=store.bias is not None,
        precision="ieee" if store.keys.dtype == torch.float32 else "tf32", num_warps=4,
        num_stages=tiling.stages, **common,
    )  # fmt: skip
    if len(splits.joined):
        programs.join_splits[len(splits.joined), rows](
            partial, peak, total, shape.sinks, store.length, splits.joined, splits.begins, out, levels, rows, count,
            groups, block=JOINED_AT_ONCE, num_warps=4, **common,
        )  # fmt: skip
    return out, scores, levels


def _weights(scores: torch.Tensor, levels: torch.Tensor, store: RaggedStore) -> torch.Tensor:
    rows, entries = scores.shape
    weights, splits = scores.new_zeros(entries), store.splits
    _programs().weigh_split[len(splits),](
        scores, levels, store.start, store.length, splits.segment, splits.number, weights, rows, entries,
        split_size=splits.size, tile=64, row_block=_padded(rows), num_warps=4,
    )  # fmt: skip
    return weights


def _padded(width: int) -> int:
    """The next power of two, at least 16."""
    return max(16, 1 << (width - 1).bit_length())


def _programs() -> Any:
    from headprobe.compression.kernels import split_programs  # imports triton, which not every machine has

    return split_programs

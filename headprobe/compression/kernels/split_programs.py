"""What the split kernel runs on the device, in Triton."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["entries", "ahead"])
def attend_split(
    query, keys, values, bias, sinks, start, length, segment_of, number_of, partial, peak, total, output, scores,
    levels, scaling, softcap, rows, count, ahead, entries, groups,
    split_size: tl.constexpr, tile: tl.constexpr, row_block: tl.constexpr, key_width: tl.constexpr,
    value_width: tl.constexpr, key_pad: tl.constexpr, value_pad: tl.constexpr, capped: tl.constexpr,
    biased: tl.constexpr, sunk: tl.constexpr, weighed: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """One split and a block of its segment's rows: the output, where the segment has no other split in use, otherwise
    the largest score, the sum of exponentials and the unscaled output, to be joined."""
    split = tl.program_id(0).to(tl.int64)
    segment = tl.load(segment_of + split).to(tl.int64)
    number = tl.load(number_of + split)
    used = tl.load(length + segment)
    base = tl.load(start + segment).to(tl.int64)
    row = tl.program_id(1) * row_block + tl.arange(0, row_block)
    is_row = row < rows
    key_place, value_place = tl.arange(0, key_pad), tl.arange(0, value_pad)
    is_key, is_value = key_place < key_width, value_place < value_width
    q = tl.load(
        query + (segment * rows + row)[:, None] * key_width + key_place[None, :],
        mask=is_row[:, None] & is_key[None, :], other=0.0,
    )  # fmt: skip
    first = number * split_size
    if (first >= used) & (number > 0):  # an empty segment's first split writes its output: NaN, unless there is a sink
        return
    seen = used - ahead - count + row % count + 1
    top = tl.full((row_block,), float("-inf"), tl.float32)
    mass = tl.zeros((row_block,), tl.float32)
    out = tl.zeros((row_block, value_pad), tl.float32)
    for at in range(0, tl.minimum(split_size, used - first), tile):
        entry = first + at + tl.arange(0, tile)
        inside = entry < used
        place = base + entry
        k = tl.load(
            keys + place[:, None] * key_width + key_place[None, :], mask=inside[:, None] & is_key[None, :], other=0.0
        )
        score = tl.dot(q, tl.trans(k), input_precision=precision) * scaling
        if capped:
            score = softcap * (2 * tl.sigmoid(2 * score / softcap) - 1)
        if biased:
            score += tl.load(bias + place, mask=inside, other=0.0)[None, :]
        score = tl.where(entry[None, :] < seen[:, None], score, float("-inf"))
        if weighed:
            here = scores + row[:, None].to(tl.int64) * entries + place[None, :]
            tl.store(here, score, mask=is_row[:, None] & inside[None, :])
        higher = tl.maximum(top, tl.max(score, 1))
        level = tl.where(higher == float("-inf"), 0.0, higher)
        shares = tl.exp(score - level[:, None])
        kept = tl.exp(top - level)
        mass = mass * kept + tl.sum(shares, 1)
        v = tl.load(
            values + place[:, None] * value_width + value_place[None, :],
            mask=inside[:, None] & is_value[None, :], other=0.0,
        )  # fmt: skip
        out = tl.dot(shares.to(v.dtype), v, out * kept[:, None], input_precision=precision)
        top = higher
    if used <= split_size:
        _finish(
            top, mass, out, sinks, output, levels, segment, row, rows, count, groups, value_width, value_pad, sunk,
            weighed,
        )  # fmt: skip
    else:
        line = split * rows + row
        tl.store(peak + line, top, mask=is_row)
        tl.store(total + line, mass, mask=is_row)
        tl.store(
            partial + line[:, None] * value_width + value_place[None, :], out, mask=is_row[:, None] & is_value[None, :]
        )


@triton.jit
def join_splits(
    partial, peak, total, sinks, length, joined, begins, output, levels, rows, count, groups,
    split_size: tl.constexpr, block: tl.constexpr, value_width: tl.constexpr, value_pad: tl.constexpr,
    sunk: tl.constexpr, weighed: tl.constexpr,
):  # fmt: skip
    """One row of a segment that has room for several splits, if it uses them: joined, always in the same order."""
    segment = tl.load(joined + tl.program_id(0)).to(tl.int64)
    begin = tl.load(begins + tl.program_id(0)).to(tl.int64)
    splits = tl.cdiv(tl.load(length + segment), split_size)
    if splits <= 1:
        return
    row = tl.program_id(1) + tl.arange(0, 1)
    value_place = tl.arange(0, value_pad)
    is_value = value_place < value_width
    top = tl.full((1,), float("-inf"), tl.float32)
    mass = tl.zeros((1,), tl.float32)
    out = tl.zeros((value_pad,), tl.float32)
    for at in range(0, splits, block):
        number = at + tl.arange(0, block)
        there = number < splits
        line = (begin + number) * rows + tl.program_id(1)
        peaks = tl.load(peak + line, mask=there, other=float("-inf"))
        masses = tl.load(total + line, mask=there, other=0.0)
        parts = tl.load(
            partial + line[:, None] * value_width + value_place[None, :],
            mask=there[:, None] & is_value[None, :], other=0.0,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(peaks, 0))  # finite: every row sees the first entry
        kept, share = tl.exp(top - higher), tl.exp(peaks - higher)
        mass = mass * kept + tl.sum(masses * share, 0)
        out = out * kept + tl.sum(parts * share[:, None], 0)
        top = higher
    _finish(
        top, mass, out[None, :], sinks, output, levels, segment, row, rows, count, groups, value_width, value_pad, sunk,
        weighed,
    )  # fmt: skip


@triton.jit
def _finish(
    top, mass, out, sinks, output, levels, segment, row, rows, count, groups,
    value_width: tl.constexpr, value_pad: tl.constexpr, sunk: tl.constexpr, weighed: tl.constexpr,
):  # fmt: skip
    """Write the output of some rows of one segment, the attention sink's share taken off."""
    is_row = row < rows
    if sunk:
        sink = tl.load(sinks + (segment % groups) * (rows // count) + row // count, mask=is_row, other=0.0)
        sink = sink.to(tl.float32)
        higher = tl.maximum(top, sink)
        kept = tl.exp(top - higher)
        mass = mass * kept + tl.exp(sink - higher)
        out = out * kept[:, None]
        top = higher
    line = segment * rows + row
    value_place = tl.arange(0, value_pad)
    tl.store(
        output + line[:, None] * value_width + value_place[None, :],
        (out / mass[:, None]).to(output.dtype.element_ty),
        mask=is_row[:, None] & (value_place < value_width)[None, :],
    )
    if weighed:
        tl.store(levels + line, top + tl.log(mass), mask=is_row)


@triton.jit(do_not_specialize=["entries"])
def weigh_split(
    scores, levels, start, length, segment_of, number_of, weights, rows, entries,
    split_size: tl.constexpr, tile: tl.constexpr, row_block: tl.constexpr,
):  # fmt: skip
    """The weights of one split's entries, averaged over the rows of its segment."""
    split = tl.program_id(0)
    segment = tl.load(segment_of + split)
    first = tl.load(number_of + split) * split_size
    used = tl.load(length + segment)
    if first >= used:
        return
    base = tl.load(start + segment).to(tl.int64)
    row = tl.arange(0, row_block)
    level = tl.load(levels + segment.to(tl.int64) * rows + row, mask=row < rows, other=0.0)
    for at in range(0, tl.minimum(split_size, used - first), tile):
        entry = first + at + tl.arange(0, tile)
        inside = entry < used
        here = scores + row[:, None].to(tl.int64) * entries + base + entry[None, :]
        score = tl.load(here, mask=(row < rows)[:, None] & inside[None, :], other=float("-inf"))
        tl.store(weights + base + entry, tl.sum(tl.exp(score - level[:, None]), 0) / rows, mask=inside)

"""What the fused step of a decoder layer runs on the device up attention, in Triton."""
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def project(
    x, gain, weight_0, weight_1, weight_2, bias_0, bias_1, bias_2, added, out, rows, count_0, count_1, count_2,
    epsilon, width: tl.constexpr, block: tl.constexpr, step: tl.constexpr, row_block: tl.constexpr,
    stages: tl.constexpr, normed: tl.constexpr, biased: tl.constexpr, gated: tl.constexpr, summed: tl.constexpr,
    by_dot: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """`block` columns of a linear layer, or of up to three with the same input `x` `[rows, width]`, for a few rows.

    `normed`: of the input's RMS norm, whose `gain` is applied to the input and whose scale to the sums. `gated`: the
    output is `silu(weight_0 x) * weight_1 x`; otherwise outputs of the layers lie one after another. `summed`: `added`
    (laid out as `out`) is added. Rounded to the type of `out` wherever a model of torch operations would round.
    """
    program_of_all = tl.program_id(0)
    program = program_of_all
    weight, count, offset = weight_0, count_0, program * 0
    blocks_0, blocks_1 = tl.cdiv(count_0, block), tl.cdiv(count_1, block)
    if not gated:
        if program >= blocks_0 + blocks_1:
            weight, count, offset, program = weight_2, count_2, count_0 + count_1, program - blocks_0 - blocks_1
        elif program >= blocks_0:
            weight, count, offset, program = weight_1, count_1, count_0 + offset, program - blocks_0
    column = program * block + tl.arange(0, block)
    is_column = column < count
    row, inside = tl.arange(0, row_block), tl.arange(0, step)
    is_row = row < rows
    line = column.to(tl.int64)[:, None] * width
    if by_dot:
        sums = tl.zeros((block, row_block), tl.float32)
        up = tl.zeros((block, row_block), tl.float32)
        squares = tl.zeros((step, row_block), tl.float32)
    else:
        sums = tl.zeros((block, step), tl.float32)
        up = tl.zeros((block, step), tl.float32)
        squares = tl.zeros((step,), tl.float32)
    for at in tl.range(0, width, step, num_stages=stages):
        place = at + inside
        there = place < width
        both = is_column[:, None] & there[None, :]
        w = tl.load(weight + line + place[None, :], mask=both, other=0.0, eviction_policy="evict_first")
        if gated:
            second = tl.load(weight_1 + line + place[None, :], mask=both, other=0.0, eviction_policy="evict_first")
        if by_dot:
            taken = tl.load(x + row[None, :] * width + place[:, None], mask=is_row[None, :] & there[:, None], other=0.0)
        else:
            taken = tl.load(x + place, mask=there, other=0.0)
        if normed:
            number, factor = taken.to(tl.float32), tl.load(gain + place, mask=there, other=0.0).to(tl.float32)
            squares += number * number
            if by_dot:
                factor = factor[:, None]
            taken = (number * factor).to(taken.dtype)
        if by_dot:
            sums = tl.dot(w, taken, sums, input_precision=precision)
            if gated:
                up = tl.dot(second, taken, up, input_precision=precision)
        else:
            sums += w.to(tl.float32) * taken.to(tl.float32)[None, :]
            if gated:
                up += second.to(tl.float32) * taken.to(tl.float32)[None, :]
    if not by_dot:
        sums, up = tl.sum(sums, 1)[:, None], tl.sum(up, 1)[:, None]
    if normed:
        scale = tl.rsqrt(tl.sum(squares, 0) / width + epsilon)
        if by_dot:
            scale = scale[None, :]
        sums, up = sums * scale, up * scale
    dtype = out.dtype.element_ty
    if biased:
        bias = bias_0
        if program_of_all >= blocks_0 + blocks_1:
            bias = bias_2
        elif program_of_all >= blocks_0:
            bias = bias_1
        sums += tl.load(bias + column, mask=is_column, other=0.0).to(tl.float32)[:, None]
    sums = sums.to(dtype).to(tl.float32)
    if gated:
        sums = (sums * tl.sigmoid(sums)).to(dtype).to(tl.float32) * up.to(dtype).to(tl.float32)
    total = count_0
    if not gated:
        total += count_1 + count_2
    place = row[None, :] * total + offset + column[:, None]
    is_place = is_row[None, :] & is_column[:, None]
    if summed:
        sums += tl.load(added + place, mask=is_place, other=0.0).to(tl.float32)
    tl.store(out + place, sums.to(dtype), mask=is_place)


@triton.jit
def rotate_and_write(
    projected, cosine, sine, query_gain, key_gain, query, keys, values, last, heads, groups, epsilon,
    width: tl.constexpr, half: tl.constexpr, half_pad: tl.constexpr, normed: tl.constexpr,
):  # fmt: skip
    """One head of one sequence: its query rotated into `query` `[B, H, d]`, or its key rotated and its value written
    to the entry `last` of its segment. `projected` `[B, (H + 2 G) d]`; `cosine` and `sine` `[B, d]`. `normed`: queries
    and keys are brought to unit RMS before, with gains of their own."""
    sequence, head = tl.program_id(0), tl.program_id(1)
    place = tl.arange(0, half_pad)
    is_place = place < half
    source = projected + (sequence * (heads + 2 * groups) + head).to(tl.int64) * width
    dtype = projected.dtype.element_ty
    first = tl.load(source + place, mask=is_place, other=0.0)
    second = tl.load(source + half + place, mask=is_place, other=0.0)
    group = (head - heads) % groups
    if head < heads:
        target = query + (sequence * heads + head).to(tl.int64) * width
    elif head < heads + groups:
        target = keys + tl.load(last + sequence * groups + group).to(tl.int64) * width
    else:
        target = values + tl.load(last + sequence * groups + group).to(tl.int64) * width
    if head < heads + groups:
        if normed:
            gain = key_gain
            if head < heads:
                gain = query_gain
            a, b = first.to(tl.float32), second.to(tl.float32)
            scale = tl.rsqrt((tl.sum(a * a, 0) + tl.sum(b * b, 0)) / width + epsilon)
            low = tl.load(gain + place, mask=is_place, other=0.0)
            high = tl.load(gain + half + place, mask=is_place, other=0.0)
            first = (low.to(tl.float32) * (a * scale).to(dtype).to(tl.float32)).to(dtype)
            second = (high.to(tl.float32) * (b * scale).to(dtype).to(tl.float32)).to(dtype)
        a, b = first.to(tl.float32), second.to(tl.float32)
        at = sequence * width + place
        cos_low = tl.load(cosine + at, mask=is_place, other=0.0).to(tl.float32)
        cos_high = tl.load(cosine + at + half, mask=is_place, other=0.0).to(tl.float32)
        sin_low = tl.load(sine + at, mask=is_place, other=0.0).to(tl.float32)
        sin_high = tl.load(sine + at + half, mask=is_place, other=0.0).to(tl.float32)
        first = ((a * cos_low).to(dtype).to(tl.float32) + (-b * sin_low).to(dtype).to(tl.float32)).to(dtype)
        second = ((b * cos_high).to(dtype).to(tl.float32) + (a * sin_high).to(dtype).to(tl.float32)).to(dtype)
    tl.store(target + place, first, mask=is_place)
    tl.store(target + half + place, second, mask=is_place)

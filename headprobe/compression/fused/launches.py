"""The launches of a fused step, with the sizes that they are compiled for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headprobe.compression.kernels.device import on_its_device

MOST_ROWS = 16  # sequences of a batch: as many as a tensor core takes at a time
Biased = tuple[torch.Tensor, torch.Tensor | None]  # a linear layer's weight `[N, K]` and bias `[N]`


@dataclass(frozen=True)
class Blocking:
    """How a projection is cut: `block` outputs a program, `step` inputs at a time, `stages` of these in flight.

    `by_dot`: products are taken by tensor cores; otherwise, for one row alone, number by number.
    """

    block: int
    step: int
    warps: int
    stages: int
    by_dot: bool

    @classmethod
    def of(cls, rows: int, *, normed: bool = False, gated: bool = False) -> Blocking:
        """Those that were fastest on an H200 for the layers of a Llama-3-8B in bfloat16."""
        if rows == 1:
            if gated:
                return cls(4, 1024, 4, 3, by_dot=False)
            return cls(16, 256, 4, 4, by_dot=False) if normed else cls(8, 512, 4, 4, by_dot=False)
        # Each program applies the norm's gain to all inputs: many outputs a program make that rare.
        return cls(64, 64, 4, 5, by_dot=True) if normed else cls(16, 256, 2, 4, by_dot=True)


@on_its_device
def project(
    x: torch.Tensor,
    layers: Sequence[Biased],
    *,
    norm: tuple[torch.Tensor, float] | None = None,
    gated: bool = False,
    added: torch.Tensor | None = None,
    blocking: Blocking | None = None,
) -> torch.Tensor:
    """One to three linear layers of the same input `x` `[rows, K]`, at most `MOST_ROWS`: outputs `[rows, sum of N]`.

    `norm`: gain `[K]` and epsilon of an RMS norm that comes before; `gated`: `silu(first) * second` `[rows, N]` of two
    layers without bias; `added` `[rows, N]`: what the output is added to.
    """
    rows, width = x.shape
    assert rows <= MOST_ROWS
    assert x.is_contiguous()
    sizes = [weight.shape[0] for weight, _ in layers] + [0] * (3 - len(layers))
    weights, biases = ([layers[min(i, len(layers) - 1)][j] for i in range(3)] for j in range(2))
    how = blocking or Blocking.of(rows, normed=norm is not None, gated=gated)
    out = x.new_empty(rows, sizes[0] if gated else sum(sizes))
    blocks = sum(-(-size // how.block) for size in (sizes[:1] if gated else sizes))
    gain, epsilon = norm or (None, 0.0)
    _programs().project[(blocks,)](
        x, gain, *weights, *biases, added, out, rows, *sizes, epsilon, width=width, block=how.block, step=how.step,
        row_block=MOST_ROWS if how.by_dot else 1, stages=how.stages, normed=norm is not None,
        biased=layers[0][1] is not None, gated=gated, summed=added is not None, by_dot=how.by_dot,
        precision="ieee" if x.dtype == torch.float32 else "tf32", num_warps=how.warps,
    )  # fmt: skip
    return out


@on_its_device
def rotate_and_write(
    projected: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    keys: torch.Tensor,
    values: torch.Tensor,
    last: torch.Tensor,
    *,
    gains: tuple[torch.Tensor, torch.Tensor, float] | None = None,
) -> torch.Tensor:
    """Queries `[B, H, 1, d]`, rotated; keys, rotated, and values go to the entries `last` int64 `[B * G]` of `keys` and
    `values` `[total, d]`.

    `projected` `[B, (H + 2 G) d]`; `rotary`: cosines and sines `[1 or B, 1, d]`; `gains`: of the RMS norms of queries
    and keys `[d]` each, and their epsilon.
    """
    batch, width = projected.shape[0], keys.shape[1]
    groups = last.shape[0] // batch
    heads = projected.shape[1] // width - 2 * groups
    query = projected.new_empty(batch, heads, 1, width)
    cosine, sine = (table.expand(batch, 1, width).contiguous() for table in rotary)
    query_gain, key_gain, epsilon = gains or (None, None, 0.0)
    half = width // 2
    _programs().rotate_and_write[(batch, heads + 2 * groups)](
        projected, cosine, sine, query_gain, key_gain, query, keys, values, last, heads, groups, epsilon, width=width,
        half=half, half_pad=1 << (half - 1).bit_length(), normed=gains is not None, num_warps=1,
    )  # fmt: skip
    return query


def _programs() -> Any:
    from headprobe.compression.fused import programs  # imports triton, which not every machine has

    return programs

"""Rows of numbers, held as int8 or int4 with scales: the keys or the values of a quantized store."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from headprobe.compression.kv_cache_dtypes import BLOCK, QuantizedFormat

SCALE_DTYPE = torch.bfloat16
Where = slice | torch.Tensor


@dataclass(frozen=True, eq=False)
class QuantizedRows:
    """`n` rows of `width` numbers, each quantized by itself, so that rows can be written, moved and dropped alone.

    `codes` int8 `[n, width]`, or uint8 `[n, width / 2]` with the even channels in the lower four bits; `scales`
    bfloat16 `[n, blocks]`, or `[n, 2 x blocks]` with the offsets behind the scales. A number reads as
    `code x scale + offset`, computed in float32, in `dtype`. Rows with NaN or infinity read as NaN.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    width: int
    dtype: torch.dtype
    format: QuantizedFormat

    @classmethod
    def zeros(cls, count: int, like: torch.Tensor, quantized: QuantizedFormat) -> QuantizedRows:
        """So many rows of zeros, as wide as those of `like` `[..., width]`, of its type and on its device."""
        width = like.shape[-1]
        kind = torch.uint8 if quantized.bits < 8 else torch.int8
        codes = like.new_zeros(count, quantized.code_nbytes(width), dtype=kind)
        scales = like.new_zeros(count, -(-width // BLOCK) * (1 + quantized.offset), dtype=SCALE_DTYPE)
        return cls(codes, scales, width, like.dtype, quantized)

    def zeros_like(self, count: int) -> QuantizedRows:
        """So many rows of zeros of the same kind."""
        return self.zeros(count, self.scales.new_empty(0, self.width, dtype=self.dtype), self.format)

    @property
    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What is held, a line for each row."""
        return self.codes, self.scales

    def write(self, where: torch.Tensor, rows: torch.Tensor) -> None:
        """Quantize `rows` `[k, width]` into the places `where`, int64 `[k]`."""
        codes, scales = quantize(rows, self.format)
        self.codes.index_copy_(0, where, codes)
        self.scales.index_copy_(0, where, scales)

    def read(self, where: Where) -> torch.Tensor:
        """The rows at these places, `[k, width]`."""
        return dequantize(self.codes[where], self.scales[where], self.width, self.format).to(self.dtype)


def quantize(rows: torch.Tensor, quantized: QuantizedFormat) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and scales of `rows` `[k, width]`, as `QuantizedRows` holds them.

    A block's scale is its largest absolute number through 127 (int8), or its spread through 15 with its least number as
    offset (int4), rounded to bfloat16 before the codes are counted with it.
    """
    width = rows.shape[-1]
    blocks = _blocks(rows.float(), width)
    if quantized.offset:
        low = blocks.amin(-1).to(SCALE_DTYPE)
        span = blocks.amax(-1) - low.float()
    else:
        low = None
        span = blocks.abs().amax(-1)
    scales = (span / quantized.largest).to(SCALE_DTYPE)
    above = blocks if low is None else blocks - low.float()[..., None]
    steps = scales.float()[..., None]
    codes = torch.where(steps > 0, above / steps, 0.0).round_().clamp_(quantized.least, quantized.largest)
    codes = codes.nan_to_num_(0.0).flatten(-2)[..., :width]
    held = scales if low is None else torch.cat([scales, low], -1)
    return _packed(codes) if quantized.bits < 8 else codes.to(torch.int8), held


def dequantize(codes: torch.Tensor, scales: torch.Tensor, width: int, quantized: QuantizedFormat) -> torch.Tensor:
    """The numbers `[k, width]`, float32, that codes and scales stand for."""
    numbers = (_unpacked(codes, width) if quantized.bits < 8 else codes).float()
    count = -(-width // BLOCK)
    blocks = _blocks(numbers, width) * scales[..., :count].float()[..., None]
    if quantized.offset:
        blocks = blocks + scales[..., count:].float()[..., None]
    return blocks.flatten(-2)[..., :width]


def _blocks(rows: torch.Tensor, width: int) -> torch.Tensor:
    """`[k, width]` -> `[k, blocks, BLOCK]`; a last block that is not full is filled up with its last number, which
    changes neither its least nor its largest."""
    missing = -width % BLOCK
    if missing:
        rows = torch.cat([rows, rows[..., -1:].expand(*rows.shape[:-1], missing)], -1)
    return rows.unflatten(-1, (-1, BLOCK))


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """Codes of 0 to 15 `[k, width]`, two in each byte."""
    pairs = pad(codes.to(torch.uint8), (0, codes.shape[-1] % 2)).unflatten(-1, (-1, 2))
    return pairs[..., 0] | (pairs[..., 1] << 4)


def _unpacked(packed: torch.Tensor, width: int) -> torch.Tensor:
    return torch.stack([packed & 15, packed >> 4], -1).flatten(-2)[..., :width]

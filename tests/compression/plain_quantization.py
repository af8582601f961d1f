"""What a number is worth once it has been held as int8 or int4: a block at a time, by the definition."""

from __future__ import annotations

import torch

BLOCK = 32


def plainly_held(rows: torch.Tensor, kv_cache_dtype: str) -> torch.Tensor:
    """`rows` `[..., d]` as a cache of this number format gives them back."""
    out = torch.empty_like(rows)
    for start in range(0, rows.shape[-1], BLOCK):
        block = rows[..., start : start + BLOCK].float()
        if kv_cache_dtype == "int8":
            low, largest, least = torch.zeros_like(block[..., :1]), 127, -127
            scale = _rounded(block.abs().max(-1, keepdim=True).values / largest)
        else:
            low, largest, least = _rounded(block.min(-1, keepdim=True).values), 15, 0
            scale = _rounded((block.max(-1, keepdim=True).values - low) / largest)
        steps = torch.where(scale > 0, (block - low) / scale, torch.zeros_like(block))
        out[..., start : start + BLOCK] = torch.clamp(torch.round(steps), least, largest) * scale + low
    return out


def plain_nbytes(width: int, kv_cache_dtype: str) -> int:
    """Bytes of one key, or one value, of `width` numbers."""
    blocks = len(range(0, width, BLOCK))
    return width + 2 * blocks if kv_cache_dtype == "int8" else (width + 1) // 2 + 4 * blocks


def _rounded(numbers: torch.Tensor) -> torch.Tensor:
    return numbers.to(torch.bfloat16).float()

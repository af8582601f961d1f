"""Attention masks as a compressed cache understands them: pads stand before the prompts, and nowhere else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headprobe.errors import OptionError


def check_mask(mask: Any, batch: int, tokens: int) -> list[int]:
    """The pads before each of `batch` sequences, from a mask over all `tokens` so far and new (1 = a token).

    Raises `OptionError` for a mask of another shape, and for pads anywhere else.
    """
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        kind = f"shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else f"type {type(mask).__name__}"
        raise OptionError(f"the attention mask has {kind}, need [B, N]: 1 for a token, 0 for a pad")
    if tuple(mask.shape) != (batch, tokens):
        need = f"{batch} x {tokens}, all tokens so far and new"
        raise OptionError(f"the attention mask covers {mask.shape[0]} x {mask.shape[1]} tokens, need {need}")
    return left_pads(mask)


def left_pads(mask: torch.Tensor) -> list[int]:
    """Leading zeros in each row of a 2D attention mask; `OptionError` for a zero behind a one, or an empty row."""
    seen = mask.bool()
    pads: Sequence[int] = seen.int().argmax(1).tolist()
    if not bool(seen.any(1).all()) or [mask.shape[1] - pad for pad in pads] != seen.sum(1).tolist():
        raise OptionError(
            "prompts must be padded on the left, with at least one token each; no pad may stand behind a token, "
            "so give those that fill up an answer which ended early as tokens"
        )
    return list(pads)

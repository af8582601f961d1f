"""Attention rows of chosen queries, caught inside a registered attention function.

The model runs unmodified. `row_capture(model)` switches it to an attention function of ours, which computes the layer's
output as usual (fused kernels, nothing of size n x n) and, for the last `num_rows` queries of a pass, the softmax rows
as well; they go to a consumer at once, one layer at a time. The model's own attention function is put back whatever
happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from headprobe.errors import ModelError

ATTENTION_NAME = "headprobe_rows"
QUERY_BLOCK = 256  # queries per kernel call where the mask is not the plain square causal one
ROW_BLOCK_ELEMENTS = 1 << 27  # above this many scores the rows are computed one KV head at a time


@dataclass(frozen=True)
class AttentionRows:
    """Post-softmax attention of the last queries of a pass, in one layer."""

    layer: int
    weights: torch.Tensor  # [num_attention_heads, num_rows, kv_len], float32
    values: torch.Tensor  # [num_key_value_heads, kv_len, head_dim], the model's dtype


Consumer = Callable[[AttentionRows], None]


@dataclass
class _Wanted:
    num_rows: int
    consumer: Consumer


_wanted: ContextVar[_Wanted | None] = ContextVar("headprobe_wanted_rows", default=None)


@contextmanager
def row_capture(model: Any) -> Iterator[None]:
    """Run `model` with the capturing attention function inside the block; restore its own one afterwards.

    Raises `ModelError` for a model that does not go through transformers' attention interface.
    """
    before = model.config._attn_implementation
    model.set_attn_implementation(ATTENTION_NAME)
    try:
        if model.config._attn_implementation != ATTENTION_NAME:
            raise ModelError(
                f"{type(model).__name__} does not use transformers' attention interface, so its rows can't be read"
            )
        yield
    finally:
        model.set_attn_implementation(before)


@contextmanager
def wanted_rows(num_rows: int, consumer: Consumer) -> Iterator[None]:
    """Hand the rows of the last `num_rows` queries of every pass inside the block to `consumer`, layer by layer."""
    token = _wanted.set(_Wanted(num_rows, consumer))
    try:
        yield
    finally:
        _wanted.reset(token)


def attention_weights(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Softmax rows in float32, `[B, H, T, K]`, from `query` `[B, H, T, d]` and `key` `[B, G, K, d]`.

    `mask` (boolean, True = seen, `[B or 1, 1, T, K]`) or None for causal rows aligned to the end of the keys. `softcap`
    squashes the scores as in Gemma-2; `sinks` `[H]` are the extra softmax terms of gpt-oss, which take their share and
    are dropped.
    """
    batch, heads, rows, dim = query.shape
    groups = key.shape[1]
    grouped = query.float().reshape(batch, groups, heads // groups * rows, dim)
    if heads * rows * key.shape[2] > ROW_BLOCK_ELEMENTS:
        scores = torch.cat([grouped[:, g, None] @ key[:, g, None].float().transpose(2, 3) for g in range(groups)], 1)
    else:
        scores = grouped @ key.float().transpose(2, 3)
    scores = scores.view(batch, heads, rows, key.shape[2]) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = _causal_end(rows, key.shape[2], query.device)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is None:
        return torch.softmax(scores, -1)
    extra = sinks.float().reshape(1, -1, 1, 1).expand(batch, -1, rows, 1)
    return torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]


def _causal_end(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None and s_aux is None:
        out = _fused(query, key, value, attention_mask, scaling)
    else:
        out = _plain(query, key, value, attention_mask, scaling, softcap, s_aux)
    wanted = _wanted.get()
    if wanted is not None:
        rows = min(wanted.num_rows, query.shape[2])
        mask = None if attention_mask is None else attention_mask[:, :, -rows:, : key.shape[2]]
        weights = attention_weights(query[:, :, -rows:], key, mask, scaling=scaling, softcap=softcap, sinks=s_aux)
        wanted.consumer(AttentionRows(int(module.layer_idx), weights[0], value[0]))  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None


def _fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float
) -> torch.Tensor:
    """Attention through torch's fused kernels, `[B, H, T, d]`; no mask means causal, aligned to the end of the keys."""
    queries, keys = query.shape[2], key.shape[2]
    shared: dict[str, Any] = {"scale": scaling, "enable_gqa": key.shape[1] != query.shape[1]}
    if mask is None and queries in (1, keys):
        return scaled_dot_product_attention(query, key, value, is_causal=queries > 1, **shared)
    if mask is None and query.is_cuda:
        from torch.nn.attention.bias import causal_lower_right

        return scaled_dot_product_attention(query, key, value, attn_mask=causal_lower_right(queries, keys), **shared)
    parts = [
        scaled_dot_product_attention(query[:, :, a:b], key[:, :, :end], value[:, :, :end], attn_mask=part, **shared)
        for a, b, end, part in _query_blocks(queries, keys, mask, query.device)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _plain(query, key, value, mask, scaling, softcap, sinks) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Attention by explicit weights, a block of queries at a time, for what the fused kernels cannot do."""
    groups = query.shape[1] // key.shape[1]
    parts = []
    for a, b, end, part in _query_blocks(query.shape[2], key.shape[2], mask, query.device):
        weights = attention_weights(
            query[:, :, a:b], key[:, :, :end], part, scaling=scaling, softcap=softcap, sinks=sinks
        )
        parts.append(weights.to(value.dtype) @ value[:, :, :end].repeat_interleave(groups, 1))
    return torch.cat(parts, 2)


def _query_blocks(
    queries: int, keys: int, mask: torch.Tensor | None, device: torch.device
) -> Iterator[tuple[int, int, int, torch.Tensor]]:
    """Blocks `[a, b)` of queries, the keys `[0, end)` they can see, and their mask."""
    for a in range(0, queries, QUERY_BLOCK):
        b = min(a + QUERY_BLOCK, queries)
        end = keys - queries + b
        yield a, b, end, _causal_end(b - a, end, device) if mask is None else mask[:, :, a:b, :end]


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for plain causal attention without padding (`_fused` aligns it), else transformers' boolean one."""
    if kwargs.get("mask_function") is causal_mask_function and kwargs.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)

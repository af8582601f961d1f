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
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from headprobe.errors import ModelError
from headprobe.spans import Span

ATTENTION_NAME = "headprobe_rows"
QUERY_BLOCK = 256  # queries per kernel call where the mask is not the plain square causal one
ROW_BLOCK_ELEMENTS = 1 << 27  # above this many scores rows are computed one KV head, or fewer queries, at a time


@dataclass(frozen=True, eq=False)
class AttentionRows:
    """Post-softmax attention of the last queries of a pass, in one layer."""

    layer: int
    weights: torch.Tensor  # [num_attention_heads, num_rows, kv_len], float32
    values: torch.Tensor  # [num_key_value_heads, kv_len, head_dim], the model's dtype
    _sorted: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict, repr=False)

    def top_mass(self, span: Span, top: int) -> torch.Tensor:
        """The part of each row's `top` largest weights that falls on `span`, `[H, R]`; the sorting is done once."""
        if top not in self._sorted:
            self._sorted[top] = largest(self.weights, top)
        return mass_inside(self._sorted[top], span)


def largest(weights: torch.Tensor, top: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `top` largest weights of each row and where they lie, two `[..., top]` (fewer in shorter rows)."""
    values, positions = weights.topk(min(top, weights.shape[-1]), dim=-1, sorted=False)
    return values, positions


def mass_inside(found: tuple[torch.Tensor, torch.Tensor], span: Span) -> torch.Tensor:
    """The sum of those weights whose positions lie in `span`: `[..., top] -> [...]`.

    >>> mass_inside(largest(torch.tensor([0.1, 0.5, 0.3, 0.1]), 2), Span(2, 4))
    tensor(0.3000)
    """
    values, positions = found
    return (values * ((positions >= span.start) & (positions < span.end))).sum(-1)


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
        mask = causal_end(rows, key.shape[2], query.device)
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is None:
        return torch.softmax(scores, -1)
    extra = sinks.float().reshape(1, -1, 1, 1).expand(batch, -1, rows, 1)
    return torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]


def causal_end(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    """The boolean causal mask `[rows, keys]` of the last `rows` queries over all keys."""
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
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is None and s_aux is None:
        out = _fused(query, key, value, attention_mask, scaling, sliding_window)
    else:
        out = _plain(query, key, value, attention_mask, scaling, softcap, s_aux, sliding_window)
    wanted = _wanted.get()
    if wanted is not None:
        rows = min(wanted.num_rows, query.shape[2])
        mask = None if attention_mask is None else attention_mask[:, :, -rows:, : key.shape[2]]
        weights = attention_weights(query[:, :, -rows:], key, mask, scaling=scaling, softcap=softcap, sinks=s_aux)
        wanted.consumer(AttentionRows(int(module.layer_idx), weights[0], value[0]))  # type: ignore[arg-type]
    return out.transpose(1, 2).contiguous(), None


def _fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention through torch's fused kernels, `[B, H, T, d]`; no mask means causal, aligned to the end of the keys."""
    queries, keys = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    if mask is None and queries in (1, keys):
        return scaled_dot_product_attention(query, key, value, is_causal=queries > 1, scale=scaling, enable_gqa=grouped)
    if mask is None and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.bias import causal_lower_right

        aligned: Any = causal_lower_right(queries, keys)
        return scaled_dot_product_attention(query, key, value, attn_mask=aligned, scale=scaling, enable_gqa=grouped)
    parts = []
    for a, b, start, end, part in _query_blocks(queries, keys, mask, window, QUERY_BLOCK, query.device):
        k, v = key[:, :, start:end], value[:, :, start:end]
        if grouped and query.is_cuda:  # with a mask, CUDA's fused kernels want as many KV heads as query heads
            k, v = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (k, v))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, a:b], k, v, attn_mask=part, scale=scaling, enable_gqa=k.shape[1] != query.shape[1]
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def _plain(query, key, value, mask, scaling, softcap, sinks, window=None) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Attention by explicit weights, a block of queries at a time, for what the fused kernels cannot do."""
    batch, heads, queries, dim = query.shape
    groups, keys = key.shape[1], key.shape[2]
    block = max(8, min(QUERY_BLOCK, ROW_BLOCK_ELEMENTS // (heads * min(keys, (window or keys) + QUERY_BLOCK))))
    parts = []
    for a, b, start, end, part in _query_blocks(queries, keys, mask, window, block, query.device):
        weights = attention_weights(
            query[:, :, a:b], key[:, :, start:end], part, scaling=scaling, softcap=softcap, sinks=sinks
        )
        grouped = weights.to(value.dtype).view(batch, groups, -1, end - start)
        parts.append((grouped @ value[:, :, start:end]).view(batch, heads, b - a, dim))
    return torch.cat(parts, 2)


def _query_blocks(
    queries: int, keys: int, mask: torch.Tensor | None, window: int | None, block: int, device: torch.device
) -> Iterator[tuple[int, int, int, int, torch.Tensor]]:
    """Blocks `[a, b)` of queries, the keys `[start, end)` that any of them can see, and their mask.

    `window`: how many keys a query of a sliding-window layer sees, itself included; the mask has the last word.
    """
    for a in range(0, queries, block):
        b = min(a + block, queries)
        end = keys - queries + b
        if mask is None:
            yield a, b, 0, end, causal_end(b - a, end, device)
        else:
            start = max(0, keys - queries + a - window + 1) if window else 0
            yield a, b, start, end, mask[:, :, a:b, start:end]


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for plain causal attention without padding (`_fused` aligns it), else transformers' boolean one."""
    if kwargs.get("mask_function") is causal_mask_function and kwargs.get("attention_mask") is None:
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)

"""Attention over whole keys and values: softmax rows for those who look at them, fused kernels for the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import torch
from torch.nn.functional import pad, scaled_dot_product_attention

HALF = (torch.float16, torch.bfloat16)
QUERY_BLOCK = 256  # queries per kernel call where the mask is not the plain square causal one
MASK_ELEMENTS = 1 << 20  # causal masks up to this size are kept for the next layer
ROW_BLOCK_ELEMENTS = 1 << 27  # above this many scores rows are computed one KV head, or fewer queries, at a time


def dense_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    scaling: float,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Attention output `[B, H, T, d_v]` of `query` `[B, H, T, d]` over `key` `[B, G, K, d]`, `value` `[B, G, K, d_v]`.

    `mask` as in `attention_weights`; without it attention is causal, aligned to the end of the keys.
    `window`: how many keys a query of a sliding-window layer sees, itself included; a mask takes
    precedence. `softcap` and `sinks` as in `attention_weights`. Nothing of size T x K is built beyond a block of
    queries.
    """
    if softcap is None and sinks is None:
        return fused_attention(query, key, value, mask, scaling, window)
    return explicit_attention(query, key, value, mask, scaling, softcap, sinks, window)


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

    `mask` `[B or 1, H or 1, T, K]`: boolean (True = seen), or numbers that are added to the scores; None for causal
    rows aligned to the end of the keys. `softcap` squashes the scores as in Gemma-2; `sinks` `[H]` are the extra
    softmax terms of gpt-oss, which take their share and are dropped.
    """
    batch, heads, rows, dim = query.shape
    groups = key.shape[1]
    grouped = query.float().reshape(batch, groups, heads // groups * rows, dim)
    copied = 0 if key.dtype == torch.float32 else 2 * key.numel()  # half keys are widened for the product
    if max(heads * rows * key.shape[2], copied) > ROW_BLOCK_ELEMENTS:
        scores = torch.cat([grouped[:, g, None] @ key[:, g, None].float().transpose(2, 3) for g in range(groups)], 1)
    else:
        scores = grouped @ key.float().transpose(2, 3)
    scores = scores.view(batch, heads, rows, key.shape[2]) * scaling
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is None:
        mask = causal_end(rows, key.shape[2], query.device)
    scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask.float()
    if sinks is None:
        return torch.softmax(scores, -1)
    extra = sinks.float().reshape(1, -1, 1, 1).expand(batch, -1, rows, 1)
    return torch.softmax(torch.cat([scores, extra], -1), -1)[..., :-1]


def causal_end(rows: int, keys: int, device: torch.device, window: int | None = None) -> torch.Tensor:
    """The boolean causal mask `[rows, keys]` of the last `rows` queries over all keys (not to be written to).

    `window`: how many keys a query sees at most, itself included.
    """
    make = _causal_end if rows * keys > MASK_ELEMENTS else _kept_causal_end
    seen = make(rows, keys, device)
    return seen if window is None or window >= keys else seen & ~seen.tril(keys - rows - window)


def _causal_end(rows: int, keys: int, device: torch.device) -> torch.Tensor:
    return torch.ones(rows, keys, dtype=torch.bool, device=device).tril(keys - rows)


_kept_causal_end = lru_cache(maxsize=32)(_causal_end)  # the layers of a pass ask for the same few


def fused_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    window: int | None = None,
) -> torch.Tensor:
    """Attention through torch's fused kernels, `[B, H, T, d_v]`; no mask is causal, aligned to the end of the keys."""
    width = value.shape[-1]
    if width != query.shape[-1]:  # the fused kernels want keys and values of one width; zeros change nothing
        wide = max(width, query.shape[-1])
        query, key, value = (pad(t, (0, wide - t.shape[-1])) for t in (query, key, value))
        return fused_attention(query, key, value, mask, scaling, window)[..., :width]
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(query.dtype)
    queries, keys = query.shape[2], key.shape[2]
    grouped = key.shape[1] != query.shape[1]
    windowed = window is not None and window < keys
    if mask is None and not windowed and queries in (1, keys):
        if grouped and query.is_cuda and queries > 1 and query.dtype not in HALF:
            # not all of torch's kernels for full precision take fewer KV heads; the one left over holds all scores
            key, value = (repeated(t, query.shape[1]) for t in (key, value))
            grouped = False
        return scaled_dot_product_attention(query, key, value, is_causal=queries > 1, scale=scaling, enable_gqa=grouped)
    if mask is None and not windowed and query.is_cuda and query.dtype in HALF:
        from torch.nn.attention.bias import causal_lower_right  # takes as long as all of torch, and only GPUs need it

        aligned: Any = causal_lower_right(queries, keys)
        return scaled_dot_product_attention(query, key, value, attn_mask=aligned, scale=scaling, enable_gqa=grouped)
    if mask is None and not windowed and query.device.type == "cpu":
        return joined(query, key, value, partial(_flash_on_cpu, scaling))
    parts = []
    for a, b, start, end, part in query_blocks(queries, keys, mask, window, QUERY_BLOCK, query.device):
        k, v = key[:, :, start:end], value[:, :, start:end]
        if grouped and query.is_cuda:  # with a mask, CUDA's fused kernels want as many KV heads as query heads
            k, v = (repeated(t, query.shape[1]) for t in (k, v))
        parts.append(
            scaled_dot_product_attention(
                query[:, :, a:b], k, v, attn_mask=part, scale=scaling, enable_gqa=k.shape[1] != query.shape[1]
            )
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def repeated(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values `[B, G, K, d]` once for each query head that shares them, `[B, heads, K, d]`."""
    return tensor.repeat_interleave(heads // tensor.shape[1], 1)


# Output `[B, H, T, d_v]` and log-sum-exps, a number for each row of it, of queries, keys and values of as many heads;
# without a mask, or causal where the last argument says so.
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor]]


def joined(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attend: Attend) -> torch.Tensor:
    """Causal attention of the last `T` of `K` positions: over what stood before them, over themselves, joined.

    Neither part needs a mask, and `attend` gives the log-sum-exp by which the two are weighed.
    """
    batch, heads, queries, dim = query.shape
    groups, before = key.shape[1], key.shape[2] - query.shape[2]
    grouped = query.reshape(batch, groups, -1, dim)
    far, far_lse = attend(grouped, key[:, :, :before], value[:, :, :before], False)
    near_keys, near_values = (repeated(t[:, :, before:], heads) for t in (key, value))
    near, near_lse = attend(query, near_keys, near_values, True)
    rows = batch, heads, queries, 1
    share = torch.sigmoid(far_lse.reshape(rows) - near_lse.reshape(rows)).to(near.dtype)
    return torch.lerp(near, far.reshape(batch, heads, queries, -1), share)


def _flash_on_cpu(
    scaling: float, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, is_causal: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, scale=scaling
    )
    return out, lse


def explicit_attention(query, key, value, mask, scaling, softcap, sinks, window=None) -> torch.Tensor:  # type: ignore[no-untyped-def]
    """Attention by explicit weights, a block of queries at a time, for what the fused kernels cannot do."""
    batch, heads, queries, _ = query.shape
    groups, keys = key.shape[1], key.shape[2]
    block = max(8, min(QUERY_BLOCK, ROW_BLOCK_ELEMENTS // (heads * min(keys, (window or keys) + QUERY_BLOCK))))
    parts = []
    for a, b, start, end, part in query_blocks(queries, keys, mask, window, block, query.device):
        weights = attention_weights(
            query[:, :, a:b], key[:, :, start:end], part, scaling=scaling, softcap=softcap, sinks=sinks
        )
        grouped = weights.to(value.dtype).view(batch, groups, -1, end - start)
        parts.append((grouped @ value[:, :, start:end]).view(batch, heads, b - a, -1))
    return torch.cat(parts, 2)


def query_blocks(
    queries: int, keys: int, mask: torch.Tensor | None, window: int | None, block: int, device: torch.device
) -> Iterator[tuple[int, int, int, int, torch.Tensor]]:
    """Blocks `[a, b)` of queries, the keys `[start, end)` that any of them can see, and their mask.

    `window`: how many keys a query of a sliding-window layer sees, itself included; the mask takes precedence.
    """
    for a in range(0, queries, block):
        b = min(a + block, queries)
        end = keys - queries + b
        start = max(0, keys - queries + a - window + 1) if window else 0
        if mask is not None:
            yield a, b, start, end, mask[:, :, a:b, start:end]
            continue
        yield a, b, start, end, causal_end(b - a, end - start, device, window)

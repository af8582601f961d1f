"""Attention rows of chosen queries, caught inside a registered attention function.

The model runs unmodified. `row_capture(model)` switches it to an attention function of ours, which computes the layer's
output as usual (fused kernels, nothing of size n x n) and, for the last `num_rows` queries of a pass, the softmax rows
as well; they go to a consumer at once, one layer at a time. In the last layer nothing but those queries is computed:
the other tokens' outputs reach no one, only their keys and values do. The model's own attention function is put back
whatever happens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import causal_mask_function, sdpa_mask

from headprobe.geometry import SLIDING_ATTENTION, layer_types_of
from headprobe.models.attention_switch import switched_attention
from headprobe.models.dense_attention import attention_weights, causal_end, dense_attention
from headprobe.spans import Span

ATTENTION_NAME = "headprobe_rows"


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

    Inside, outputs of a pass hold for its last `num_rows` tokens only (the last one where no rows are wanted). Raises
    `ModelError` for a model that does not go through transformers' attention interface.
    """
    with switched_attention(model, ATTENTION_NAME, ", so its rows can't be read"), _short_last_mlp(model):
        yield


@contextmanager
def _short_last_mlp(model: Any) -> Iterator[None]:
    """Let the MLP of the last layer work on the last `num_rows` tokens only and give zeros for the others."""
    mlp = getattr(model.get_decoder().layers[-1], "mlp", None)
    if mlp is None:
        yield
        return
    lengths: list[int] = []

    def cut(_: Any, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        lengths.append(given[0].shape[1])
        return given[0][:, -_rows_of_pass() :], *given[1:]

    def fill(_: Any, given: Any, out: Any) -> Any:
        states, *rest = out if isinstance(out, tuple) else (out,)
        states = pad(states, (0, 0, lengths.pop() - states.shape[1], 0))
        return (states, *rest) if isinstance(out, tuple) else states

    hooks = mlp.register_forward_pre_hook(cut), mlp.register_forward_hook(fill)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _rows_of_pass() -> int:
    """How many tokens at the end of the pass in work somebody looks at."""
    wanted = _wanted.get()
    return 1 if wanted is None else wanted.num_rows


@contextmanager
def wanted_rows(num_rows: int, consumer: Consumer) -> Iterator[None]:
    """Hand the rows of the last `num_rows` queries of every pass inside the block to `consumer`, layer by layer."""
    token = _wanted.set(_Wanted(num_rows, consumer))
    try:
        yield
    finally:
        _wanted.reset(token)


def _attention(
    module: Any,
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
    tokens, rows = query.shape[2], min(_rows_of_pass(), query.shape[2])
    window = sliding_window or _window_of(module)
    last, last_mask = query[:, :, -rows:], _last_rows(attention_mask, rows, key.shape[2], window, query.device)
    if module.layer_idx == module.config.num_hidden_layers - 1:
        query, attention_mask = last, None if attention_mask is None else last_mask
    out = dense_attention(
        query, key, value, attention_mask, scaling=scaling, softcap=softcap, sinks=s_aux, window=window
    )
    out = pad(out.transpose(1, 2), (0, 0, 0, 0, tokens - out.shape[2], 0)).contiguous()
    wanted = _wanted.get()
    if wanted is not None:
        weights = attention_weights(last, key, last_mask, scaling=scaling, softcap=softcap, sinks=s_aux)
        wanted.consumer(AttentionRows(int(module.layer_idx), weights[0], value[0]))
    return out, None


def _window_of(module: Any) -> int | None:
    """How many keys a query of this layer sees, where the config says so and the model does not pass it on."""
    kind = layer_types_of(module.config)[module.layer_idx]
    return getattr(module.config, "sliding_window", None) if kind == SLIDING_ATTENTION else None


def _last_rows(
    mask: torch.Tensor | None, rows: int, keys: int, window: int | None, device: torch.device
) -> torch.Tensor | None:
    """The mask of the last `rows` queries; None where they see all that came before them."""
    if mask is not None:
        return mask[:, :, -rows:, :keys]
    return None if window is None else causal_end(rows, keys, device, window)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    """No mask for causal attention without padding, with a sliding window or without, else transformers' own.

    `dense_attention` aligns it, and knows the window: a mask would be as large as tokens of a pass x keys.
    """
    plain = kwargs.get("allow_is_causal_skip") and kwargs.get("attention_mask") is None
    chunked = getattr(kwargs.get("config"), "attention_chunk_size", None) is not None
    windowed = kwargs.get("local_size") is not None and not chunked
    if plain and (windowed or kwargs.get("mask_function") is causal_mask_function):
        return None
    return sdpa_mask(*args, **kwargs)


AttentionInterface.register(ATTENTION_NAME, _attention)
AttentionMaskInterface.register(ATTENTION_NAME, _mask)

"""Attention rows of chosen queries, caught where a tapped model attends.

The model runs unmodified. Inside `row_capture(model)` every layer's output is computed as usual (fused kernels, nothing
of size n x n) and, for the last `num_rows` queries of a pass, the softmax rows as well; they go to a consumer at once,
one layer at a time. In the last layer nothing but those queries is computed: the other tokens' outputs reach no one,
only their keys and values do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import pad

from headprobe.attention.dense import attention_weights, causal_end, dense_attention
from headprobe.attention.tap import LayerCall, tapped
from headprobe.spans import Span


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
    """Capture the rows that are wanted inside the block; the model's own attention comes back afterwards.

    Inside, outputs of a pass hold for its last `num_rows` tokens only (the last one where no rows are wanted). Raises
    `ModelError` for a model whose attention can't be read (see `tapped`).
    """
    with tapped(model, _attend, consequence=", so its rows can't be read"), _short_last_mlp(model):
        yield


@contextmanager
def _short_last_mlp(model: Any) -> Iterator[None]:
    """Let the MLP of the last layer work on the last `num_rows` tokens only and give zeros for the others.

    Where the last block is not found, or its MLP takes anything but hidden states `[B, T, hidden]`, nothing is cut.
    """
    blocks: Any = getattr(model.get_decoder(), "layers", ())
    known = len(blocks) == model.config.get_text_config(decoder=True).num_hidden_layers
    mlp = getattr(blocks[-1], "mlp", None) if known else None
    if mlp is None:
        yield
        return
    lengths: list[int] = []

    def cut(_: Any, given: Any) -> Any:
        states = given[0] if len(given) == 1 else None
        if states is None or states.ndim != 3:
            lengths.append(0)
            return given
        lengths.append(states.shape[1])
        return (states[:, -_rows_of_pass() :],)

    def fill(_: Any, given: Any, out: Any) -> Any:
        states, *rest = out if isinstance(out, tuple) else (out,)
        states = pad(states, (0, 0, max(0, lengths.pop() - states.shape[1]), 0))
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


def _attend(call: LayerCall) -> torch.Tensor:
    """A layer's output, and its rows to the consumer; in the last layer for the rows' tokens alone, zeros before."""
    query, key, value = call.query, call.key, call.value
    tokens, rows = query.shape[2], min(_rows_of_pass(), query.shape[2])
    options: dict[str, Any] = {"scaling": call.scaling, "softcap": call.softcap, "sinks": call.sinks}
    ends, mask = query[:, :, -rows:], call.mask
    last_mask = _last_rows(call, rows)
    if call.layer == call.module.config.num_hidden_layers - 1:
        query, mask = ends, None if mask is None else last_mask
    out = dense_attention(query, key, value, mask, window=call.window, **options)
    wanted = _wanted.get()
    if wanted is not None:
        weights = attention_weights(ends, key, last_mask, **options)
        wanted.consumer(AttentionRows(call.layer, weights[0], value[0]))
    return out if out.shape[2] == tokens else pad(out, (0, 0, tokens - out.shape[2], 0))


def _last_rows(call: LayerCall, rows: int) -> torch.Tensor | None:
    """The mask of the last `rows` queries; None where they see all that came before them."""
    if call.mask is not None:
        return call.mask[:, :, -rows:]
    if call.window is None:
        return None
    return causal_end(rows, call.key.shape[2], call.query.device, call.window)

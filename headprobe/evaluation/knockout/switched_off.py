"""Attention heads that are switched off: other ones in each row of a batch, so that many sets share one pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from headprobe.attention.dense import attention_weights, causal_end, dense_attention, repeated
from headprobe.attention.tap import LayerCall, tapped
from headprobe.errors import ModelError, NonFiniteError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.releases import given_cache
from headprobe.scores.head_scores import Floats, Head
from headprobe.spans import Span

MASK, ZERO, MEAN = "mask", "zero", "mean"
MODES = (MASK, ZERO, MEAN)
HeadSet = tuple[Head, ...]
COPIED_ELEMENTS = 1 << 26  # of keys that are copied without a span at a time


def check_mode(mode: str) -> None:
    """Raise `OptionError` for a way to switch heads off that nobody knows."""
    if mode not in MODES:
        raise OptionError(f"heads are switched off by {', '.join(MODES)}, not {mode!r:.60}")


@contextmanager
def switched_off(
    model: Any, rows: Sequence[HeadSet], mode: str, *, span: Span | None = None, means: Floats | None = None
) -> Iterator[None]:
    """Inside the block row `i` of every batch runs without the `(layer, head)` pairs of `rows[i]`.

    `mask`: queries behind `span` cannot look at it with these heads, whose softmax runs over the other positions;
    `zero`: what they put out is 0 at every token; `mean`: it is `means[layer, head]`, `means` `[L, H, d_v]` from
    `mean_outputs`. The output of a head is what comes before the projection of the layer. For batches of exactly
    `len(rows)` sequences without padding, and caches that keep all tokens in all layers (`PrefixCache`).

    The model's own attention comes back whatever happens. Raises `OptionError` for an unknown mode or a head that the
    model does not have, `ModelError` for a model whose attention can't be changed, or a layer that never attended.
    """
    check_mode(mode)
    if (mode == MASK) != (span is not None) or (mode == MEAN) != (means is not None):
        raise ValueError(f"mode {mode} with span {span} and {'no ' if means is None else ''}means")
    state = _Switch(_pairs(rows, ModelGeometry.from_config(model.config.get_text_config(decoder=True))), span, means)
    with tapped(model, state.attend, consequence=", so its heads can't be switched off"):
        yield
    silent = sorted(set(state.pairs) - state.called)
    if state.called and silent:
        raise ModelError(f"layer {silent[0]} of {type(model).__name__} never attended: nothing was switched off there")


@dataclass
class _Switch:
    """What is off: by layer the rows and the heads, side by side."""

    pairs: dict[int, tuple[list[int], list[int]]]
    span: Span | None
    means: Floats | None
    called: set[int] = field(default_factory=set)

    def attend(self, call: LayerCall) -> torch.Tensor:
        """A layer's output `[B, H, T, d_v]` without the heads that are off."""
        self.called.add(call.layer)
        out = dense_attention(
            call.query, call.key, call.value, call.mask,
            scaling=call.scaling, softcap=call.softcap, sinks=call.sinks, window=call.window,
        )  # fmt: skip
        rows, heads = self.pairs.get(call.layer, ([], []))
        if not rows:
            return out
        if heads and max(heads) >= out.shape[1]:
            raise ModelError(f"layer {call.layer} of {call.model_name} has {out.shape[1]} heads, its config says more")
        if self.span is not None:
            return _without_span(call, out, rows, heads, self.span)
        if self.means is None:
            out[rows, heads] = 0.0
        else:
            kept = torch.as_tensor(self.means[call.layer, heads], dtype=out.dtype, device=out.device)
            out[rows, heads] = kept[:, None, :]
        return out


def _without_span(call: LayerCall, out: torch.Tensor, rows: list[int], heads: list[int], span: Span) -> torch.Tensor:
    """`out` with the given heads computed anew over keys that lack `span`, for the queries behind it.

    Each pair of row and head becomes a head of one sequence. What is left of the keys is causal as before, since all
    these queries stand behind what is cut out.
    """
    queries, keys = call.query.shape[2], call.key.shape[2]
    first = max(0, span.end - (keys - queries))
    if first >= queries or not len(span):
        return out
    group = call.query.shape[1] // call.key.shape[1]
    step = max(1, COPIED_ELEMENTS // (keys * call.key.shape[3]))
    for start in range(0, len(heads), step):
        some_rows, some = rows[start : start + step], heads[start : start + step]
        kv_heads = [head // group for head in some]
        key, value = (
            torch.cat([t[some_rows, kv_heads, : span.start], t[some_rows, kv_heads, span.end :]], 1)[None]
            for t in (call.key, call.value)
        )
        out[some_rows, some, first:] = dense_attention(
            call.query[some_rows, some, first:][None], key, value, _mask_without(call, some_rows, some, first, span),
            scaling=call.scaling, softcap=call.softcap, sinks=None if call.sinks is None else call.sinks[some],
        )[0]  # fmt: skip
    return out


def _mask_without(call: LayerCall, rows: list[int], heads: list[int], first: int, span: Span) -> torch.Tensor | None:
    """What the pairs see without `span`, `[1, pairs or 1, T, K]`; None for all that came before."""
    queries, keys = call.query.shape[2], call.key.shape[2]
    if call.mask is not None:
        every = call.mask.expand(call.query.shape[0], call.query.shape[1], queries, keys)
        seen = every[rows, heads, first:][None]
    elif call.window is not None and call.window < keys:
        seen = causal_end(queries, keys, call.query.device, call.window)[None, None, first:]
    else:
        return None
    return torch.cat([seen[..., : span.start], seen[..., span.end :]], -1)


def _pairs(rows: Sequence[HeadSet], geometry: ModelGeometry) -> dict[int, tuple[list[int], list[int]]]:
    """By layer the rows and heads that are off. Raises `OptionError` for a head that is not there."""
    found: dict[int, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    layers, width = geometry.shape
    for row, heads in enumerate(rows):
        for layer, head in heads:
            if not (0 <= layer < layers and 0 <= head < width):
                raise OptionError(f"head {layer}-{head} is outside the model's {layers} x {width}")
            found[layer][0].append(row)
            found[layer][1].append(head)
    return dict(found)


# -- what heads put out on average ----------------------------------------------------------------------------------


def mean_outputs(model: Any, texts: Sequence[Sequence[int]]) -> Floats:
    """The mean output of every head over all tokens of `texts` (token ids), float64 `[L, H, d_v]`.

    Raises `ModelError` for a model whose attention can't be read, `NonFiniteError` for outputs that are not finite.
    """
    sums: dict[int, torch.Tensor] = {}

    def attend(call: LayerCall) -> torch.Tensor:
        out = dense_attention(
            call.query, call.key, call.value, call.mask,
            scaling=call.scaling, softcap=call.softcap, sinks=call.sinks, window=call.window,
        )  # fmt: skip
        summed = out[0].to("cpu", torch.float64).sum(1)
        sums[call.layer] = summed if call.layer not in sums else sums[call.layer] + summed
        return out

    with tapped(model, attend, consequence=", so its heads can't be switched off"), torch.inference_mode():
        for text in texts:
            model(input_ids=torch.tensor([list(text)], device=model.device), use_cache=False, logits_to_keep=1)
    layers = model.config.get_text_config(decoder=True).num_hidden_layers
    if sorted(sums) != list(range(layers)):
        raise ModelError(f"{len(sums)} of {layers} layers of {type(model).__name__} could be read")
    means = np.stack([sums[layer].numpy() for layer in range(layers)]) / sum(map(len, texts))
    if not np.isfinite(means).all():
        raise NonFiniteError(f"the mean output of a head of {type(model).__name__} is not finite")
    return means


# Hide a stretch of the context from chosen heads, and see whether the model still answers: the causal check.


@dataclass
class _Hidden:
    """What is hidden from whom, and how many tokens the model has seen with the current pass."""

    layers: dict[int, list[int]]
    span: Span
    seen: int = 0
    called: set[int] = field(default_factory=set)

    def count(self, model: torch.nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a pass: sliding-window layers hold fewer keys than tokens, so positions must be counted here."""
        ids = named.get("input_ids", arguments[0] if arguments else None)
        new = ids if ids is not None else named["inputs_embeds"]
        past = given_cache(named)
        self.seen = int(new.shape[1]) + (0 if past is None else int(past.get_seq_length()))

    def attend(self, call: LayerCall) -> tuple[torch.Tensor, torch.Tensor]:
        """A layer's output and weights without what is hidden."""
        self.called.add(call.layer)
        query, value = call.query, call.value
        weights = attention_weights(
            query, call.key, self._mask(call), scaling=call.scaling, softcap=call.softcap, sinks=call.sinks
        )
        return weights.to(value.dtype) @ repeated(value, query.shape[1]), weights

    def _mask(self, call: LayerCall) -> torch.Tensor:
        """What each head sees, `[B or 1, H, T, K]`."""
        rows, keys = call.query.shape[2], call.key.shape[2]
        gone = self.seen - keys  # tokens that a sliding-window layer holds no more
        start, end = max(0, self.span.start - gone), max(0, self.span.end - gone)
        mask = call.mask
        if mask is None:
            mask = causal_end(rows, keys, call.query.device, call.window)[None, None]
        seen = mask.expand(mask.shape[0], call.query.shape[1], rows, keys).clone()
        first_behind = max(0, self.span.end - (self.seen - rows))
        for head in self.layers.get(call.layer, []):
            seen[:, head, first_behind:, start:end] = False if seen.dtype == torch.bool else float("-inf")
        return seen


@contextmanager
def hidden_span(model: Any, heads: Iterable[tuple[int, int]], span: Span) -> Iterator[None]:
    """Inside the block the given `(layer, head)` pairs cannot look back at the tokens of `span`.

    Their softmax runs over the other positions, so the mass goes elsewhere. Queries inside the span are left alone.
    For prompts without padding. The model's own attention function is restored whatever happens. Raises `OptionError`
    for a head that the model does not have, `ModelError` for a model whose attention can't be changed (see `tapped`).
    """
    layers = _by_layer(heads, ModelGeometry.from_config(model.config.get_text_config(decoder=True)))
    state = _Hidden(layers, span)
    counting = model.register_forward_pre_hook(state.count, with_kwargs=True)
    try:
        with tapped(model, state.attend):
            yield
    finally:
        counting.remove()
    silent = sorted(set(layers) - state.called)
    if state.seen and silent:
        raise ModelError(f"layer {silent[0]} of {type(model).__name__} never attended: nothing was hidden there")


def _by_layer(heads: Iterable[tuple[int, int]], geometry: ModelGeometry) -> dict[int, list[int]]:
    layers: dict[int, list[int]] = defaultdict(list)
    for layer, head in heads:
        if not (0 <= layer < geometry.num_hidden_layers and 0 <= head < geometry.num_attention_heads):
            raise OptionError(f"head {layer}-{head} is outside the model's {geometry.shape[0]} x {geometry.shape[1]}")
        layers[layer].append(head)
    return layers

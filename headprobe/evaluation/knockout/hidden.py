"""Hide a stretch of the context from chosen heads, and see whether the model still answers: the causal check."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from headprobe.attention.dense import attention_weights, causal_end
from headprobe.attention.tap import LayerCall, tapped
from headprobe.errors import ModelError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.releases import given_cache
from headprobe.spans import Span


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
        return weights.to(value.dtype) @ value.repeat_interleave(query.shape[1] // value.shape[1], 1), weights

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

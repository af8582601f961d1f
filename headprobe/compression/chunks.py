"""Prompts in chunks: every decoder layer reads the whole prompt a piece at a time before the next layer begins.

So one layer's full keys and values are held, and the activations of one chunk; the hidden states of the prompt are
written over in place where nobody else looks at them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from headprobe.compression.ragged_cache import RaggedCache
from headprobe.errors import ModelError, OptionError
from headprobe.models.releases import given_cache

FINAL_NORMS = ("norm", "final_layernorm", "final_layer_norm")


def check_chunk(chunk: int) -> None:
    """Raise `OptionError` for a chunk below 1."""
    if chunk < 1:
        raise OptionError(f"a prefill chunk of {chunk} tokens is too small, need at least 1")


@contextmanager
def layers_in_chunks(model: Any, chunk: int) -> Iterator[None]:
    """Let every decoder layer, and the norm behind the last, read a prompt `chunk` tokens at a time.

    All is restored when the block ends. Raises `OptionError` for a chunk below 1, `ModelError` for a model without a
    list of layers.
    """
    check_chunk(chunk)
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if layers is None:
        raise ModelError(f"{type(model).__name__} has no list of decoder layers: it cannot read prompts in chunks")
    run = _Run(decoder.config, chunk)
    with ExitStack() as stack:
        stack.callback(decoder.register_forward_pre_hook(run.begin, with_kwargs=True).remove)
        for index, layer in enumerate(layers):
            stack.enter_context(_replaced(layer, run.layer(layer.forward, index)))
        for norm in (getattr(decoder, name, None) for name in FINAL_NORMS):
            if norm is not None:
                stack.enter_context(_replaced(norm, run.norm(norm.forward)))
        yield


@contextmanager
def _replaced(module: torch.nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    before = module.__dict__.get("forward")  # there where another library has put its own
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            module.__dict__.pop("forward", None)
        else:
            module.forward = before


class _Run:
    """One pass after another through a model whose layers read in chunks."""

    def __init__(self, config: Any, chunk: int) -> None:
        self.config, self.chunk = config, chunk
        self._in_place = self._cut_norm = False

    def begin(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Whether hidden states may be written over: not what the caller gave, wants to see, or needs for gradients."""
        watched = kwargs.get("output_hidden_states", getattr(self.config, "output_hidden_states", False))
        given = kwargs.get("inputs_embeds") is not None or len(args) > 1
        self._in_place = not (watched or given or torch.is_grad_enabled())
        self._cut_norm = False

    def layer(self, forward: Callable[..., Any], index: int) -> Callable[..., torch.Tensor]:
        """A decoder layer's `forward` for hidden states `[B, T, hidden]`, in chunks where a prompt is read."""

        def chunked(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            cache, tokens = given_cache(kwargs), hidden_states.shape[1]
            if not isinstance(cache, RaggedCache) or cache.get_seq_length(index) or tokens <= self.chunk:
                return forward(hidden_states, *args, **kwargs)
            cache.expect(index, tokens)
            self._cut_norm = True
            return self._by_chunk(
                lambda part: forward(
                    hidden_states[:, part],
                    *args,
                    **{name: _cut(name, value, part, tokens) for name, value in kwargs.items()},
                ),
                hidden_states,
            )

        chunked.passes_steps_on = True  # type: ignore[attr-defined]  # a single token goes to the layer as it came
        return chunked

    def norm(self, forward: Callable[..., Any]) -> Callable[..., torch.Tensor]:
        """The final norm's `forward`, which works on each token alone."""

        def chunked(hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if not self._cut_norm:
                return forward(hidden_states, *args, **kwargs)
            return self._by_chunk(lambda part: forward(hidden_states[:, part], *args, **kwargs), hidden_states)

        return chunked

    def _by_chunk(self, work: Callable[[slice], Any], states: torch.Tensor) -> torch.Tensor:
        out = states if self._in_place else torch.empty_like(states)
        for start in range(0, states.shape[1], self.chunk):
            part = slice(start, min(start + self.chunk, states.shape[1]))
            given = work(part)
            out[:, part] = given[0] if isinstance(given, tuple) else given
        return out


def _cut(name: str, value: Any, part: slice, tokens: int) -> Any:
    """The part of an argument that belongs to a chunk: whatever runs along the tokens, except the padding mask."""
    if name == "attention_mask":
        return value
    if isinstance(value, tuple | list):
        return type(value)(_cut(name, item, part, tokens) for item in value)
    if isinstance(value, torch.Tensor) and value.ndim >= 2 and value.shape[1] == tokens:
        return value[:, part]
    return value

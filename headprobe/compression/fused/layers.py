"""Decoder layers that run a decode step in few launches, put in place for a step and taken out again behind it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from headprobe.compression.fused.launches import MOST_ROWS, Biased, project, rotate_and_write
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.source import TRITON
from headprobe.compression.layers import RaggedLayer
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.ragged_store import RaggedStore
from headprobe.models.releases import given_cache

# Layers that are all of one form: RMS norm, attention with rotary embeddings, RMS norm, gated MLP, each added to what
# came in. Others run as they are.
KINDS = ("LlamaDecoderLayer", "MistralDecoderLayer", "Qwen2DecoderLayer", "Qwen3DecoderLayer")
DTYPE = torch.bfloat16  # in float16 an input could overflow between a norm's gain and its scale
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FusedLayers:
    """The layers of `model` whose step on `cache` can be fused; `refusal` says why there are none (None: all).

    Outputs are those of the layers themselves, up to the order in which products are summed, and one rounding to
    bfloat16 instead of two in a norm.
    """

    def __init__(self, model: Any, cache: RaggedCache) -> None:
        self.refusal = _refusal(model, cache)
        self._model, self._cache = model, cache

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the layers' `forward` is the fused one."""
        layers = [] if self.refusal is not None else list(self._model.get_decoder().layers)
        try:
            for layer, held in zip(layers, self._cache.layers, strict=False):
                layer.forward = FusedLayer(layer, held, self._cache)
            yield
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)


class FusedLayer:
    """The `forward` of one layer for one new token of each sequence."""

    def __init__(self, layer: Any, held: Any, cache: RaggedCache) -> None:
        self.held, self.cache = held, cache
        attention, mlp = layer.self_attn, layer.mlp
        self.heads = [_linear(attention, name) for name in ("q_proj", "k_proj", "v_proj")]
        self.joined, self.down = _linear(attention, "o_proj"), _linear(mlp, "down_proj")
        self.gate = [_linear(mlp, name) for name in ("gate_proj", "up_proj")]
        self.norms = [_norm(layer.input_layernorm), _norm(layer.post_attention_layernorm)]
        self.shape = AttentionShape(attention.scaling)
        self.gains: tuple[torch.Tensor, torch.Tensor, float] | None = None
        if hasattr(attention, "q_norm"):
            (query, epsilon), (key, _) = _norm(attention.q_norm), _norm(attention.k_norm)
            self.gains = query, key, epsilon

    def __call__(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **others: Any,
    ) -> torch.Tensor:
        """Output `[B, 1, D]` for `hidden_states` `[B, 1, D]`."""
        assert given_cache(others) is self.cache
        x = hidden_states[:, 0]
        projected = project(x, self.heads, norm=self.norms[0])
        attended = self._attend(projected, position_embeddings)
        x = project(attended, [self.joined], added=x)
        gated = project(x, self.gate, norm=self.norms[1], gated=True)
        return project(gated, [self.down], added=x)[:, None]

    def _attend(self, projected: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attention output `[B, H d]` of what was projected, whose keys and values the cache takes."""
        held, store = self.held, self.held.store
        if held.evictor is None and type(store) is RaggedStore:
            query = rotate_and_write(projected, rotary, store.keys, store.values, store.last, gains=self.gains)
            return held.attend_written(query, self.shape).flatten(1)
        batch, segments = len(projected), store.num_segments
        keys, values = (projected.new_empty(segments, width) for width in store.widths)
        places = torch.arange(segments, device=projected.device)
        query = rotate_and_write(projected, rotary, keys, values, places, gains=self.gains)
        new = (table.view(batch, -1, 1, table.shape[1]) for table in (keys, values))
        held.update(*new)
        return held.attend(query, self.shape, self.cache.pads).flatten(1)


def _refusal(model: Any, cache: RaggedCache) -> str | None:
    """Why the layers' step cannot be fused, None where it can."""
    fault = TRITON.fault()
    if fault is not None:
        return fault
    if model.device.type != "cuda" or model.dtype != DTYPE:
        return f"a step is fused on CUDA devices in bfloat16, not on {model.device.type} in {str(model.dtype)[6:]}"
    return unfit(model, cache)


def unfit(model: Any, cache: RaggedCache) -> str | None:
    """What of the model or the cache, wherever it runs, is not of the form that can be fused; None if all is."""
    layers = getattr(model.get_decoder(), "layers", ())
    kinds = {type(layer).__name__ for layer in layers if type(layer).__module__.startswith("transformers.models.")}
    if len(kinds) != 1 or not kinds <= set(KINDS) or any(type(layer).__name__ not in kinds for layer in layers):
        return f"layers of {type(model).__name__} are not of a known form"
    if len(cache.pads) > MOST_ROWS:
        return f"a batch of {len(cache.pads)} sequences, at most {MOST_ROWS} are read once with the weights"
    if len(layers) != len(cache.layers) or not all(isinstance(held, RaggedLayer) for held in cache.layers):
        return "not all layers are compressed"
    return next((reason for layer in layers if (reason := _odd(layer, model)) is not None), None)


def _odd(layer: Any, model: Any) -> str | None:
    """What stands against fusing this layer."""
    for name, module in layer.named_modules():
        if any(getattr(module, hooks, None) for hooks in HOOKS) or hasattr(module, "_hf_hook"):
            return f"{name or 'a layer'} has hooks"
        if "forward" in vars(module) or module.training:
            return f"{name or 'a layer'} is being trained, or has another forward than its own"
    linear = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.self_attn.o_proj]
    linear += [layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj]
    if any(type(module) is not nn.Linear for module in linear):
        return "its linear layers are not torch's own"
    if len({module.bias is None for module in linear[:3]}) > 1 or any(module.bias is not None for module in linear[3:]):
        return "linear layers have biases where none are expected"
    for parameter in layer.parameters():
        plain = type(parameter) is nn.Parameter and type(parameter.data) is torch.Tensor
        if not (plain and parameter.is_contiguous() and parameter.dtype == model.dtype):
            return "weights are not plain tensors of one type"
    activation = type(layer.mlp.act_fn).__name__
    return None if activation in ("SiLU", "SiLUActivation") else f"the activation is {activation}, not SiLU"


def _linear(module: Any, name: str) -> Biased:
    linear = getattr(module, name)
    return linear.weight, linear.bias


def _norm(module: Any) -> tuple[torch.Tensor, float]:
    return module.weight, module.variance_epsilon

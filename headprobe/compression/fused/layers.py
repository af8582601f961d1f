"""Decoder layers that run a decode step in few launches, in place for a step and taken out again afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import nn

from headprobe.compression.fused.launches import MOST_ROWS, Biased, project, rotate_and_write
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.choice import capability
from headprobe.compression.kernels.source import TRITON
from headprobe.compression.layers import RaggedLayer
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.ragged_store import RaggedStore
from headprobe.compression.session import attends_by_caches
from headprobe.models.releases import given_cache

# Families of transformers whose layers are all of one form: RMS norm, attention with rotary embeddings, RMS norm, gated
# MLP, each added to what came in. Others run as they are.
FAMILIES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
DTYPE = torch.bfloat16  # in float16 an input could overflow between a norm's gain and its scale
OLDEST_CARD = 8  # major compute capability; older ones know no bfloat16
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class FusedLayers:
    """The layers of `model` whose step on `cache` can be fused; `refusal` says why there are none (None: all).

    Outputs are those of the layers themselves, up to the order in which products are summed, and one rounding to
    bfloat16 instead of two in a norm. `wanted`: whether any are to be fused.
    """

    def __init__(self, model: Any, cache: RaggedCache, *, wanted: bool = True) -> None:
        self._model, self._cache, self._wanted = model, cache, wanted
        self.renew()

    def renew(self) -> None:
        """Look at the model again, which may have got hooks or other parts since."""
        self.refusal = _refusal(self._model, self._cache) if self._wanted else "fused layers are switched off"
        layers = [] if self.refusal is not None else self._layers
        self._steps = {
            id(layer): FusedLayer(layer, held, self._cache)
            for layer, held in zip(layers, self._cache.layers, strict=self.refusal is None)
        }

    @property
    def _layers(self) -> Sequence[Any]:
        layers: Sequence[Any] = self._model.get_decoder().layers
        return layers

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block, in this thread, the layers take fused steps on the cache; all else they do themselves."""
        if self.refusal is not None or not attends_by_caches(self._model):
            yield
            return
        with _switches(self._layers):
            before = _active.set(self._steps)
            try:
                yield
            finally:
                _active.reset(before)


class FusedLayer:
    """One layer's step for one new token of each sequence."""

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

    def __call__(self, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Output `[B, D]` for hidden states `[B, D]`, given cosines and sines `[1 or B, 1, d]`."""
        projected = project(x, self.heads, norm=self.norms[0])
        attended = self._attend(projected, rotary)
        x = project(attended, [self.joined], added=x)
        gated = project(x, self.gate, norm=self.norms[1], gated=True)
        return project(gated, [self.down], added=x)

    def _attend(self, projected: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Attention output `[B, H d]` of what was projected, whose keys and values the cache takes."""
        held, store = self.held, self.held.store
        if held.evictor is None and type(store) is RaggedStore:
            query = rotate_and_write(projected, rotary, store.keys, store.values, store.last, gains=self.gains)
            return torch.flatten(held.attend_written(query, self.shape), 1)
        batch, segments = len(projected), store.num_segments
        keys, values = (projected.new_empty(segments, width) for width in store.widths)
        places = torch.arange(segments, device=projected.device)
        query = rotate_and_write(projected, rotary, keys, values, places, gains=self.gains)
        new = (table.view(batch, -1, 1, table.shape[1]) for table in (keys, values))
        held.update(*new)
        return torch.flatten(held.attend(query, self.shape, self.cache.pads), 1)


# -- in place -------------------------------------------------------------------------------------------------------

_active: ContextVar[dict[int, FusedLayer] | None] = ContextVar("headprobe_fused_steps", default=None)
_switching = Lock()


class _Switch:
    """A layer's `forward` while any thread takes fused steps: that thread's, or else the layer's own."""

    def __init__(self, layer: Any) -> None:
        self.before = vars(layer).get("forward")
        self.own, self.layer_id, self.users = layer.forward, id(layer), 0

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **named: Any) -> Any:
        step, rotary = (_active.get() or {}).get(self.layer_id), named.get("position_embeddings")
        meant = step is not None and given_cache(named) is step.cache and hidden_states.shape[1] == 1
        if not meant or args or rotary is None:
            return self.own(hidden_states, *args, **named)
        return step(hidden_states[:, 0], rotary)[:, None]  # type: ignore[misc]


@contextmanager
def _switches(layers: Sequence[Any]) -> Iterator[None]:
    """Inside the block each layer's `forward` is a switch; with the last user what was there before comes back."""
    with _switching:
        for layer in layers:
            if not isinstance(vars(layer).get("forward"), _Switch):
                layer.forward = _Switch(layer)
            layer.forward.users += 1
        taken = [(layer, layer.forward) for layer in layers]
    try:
        yield
    finally:
        with _switching:
            for layer, switch in taken:
                switch.users -= 1
                if switch.users or vars(layer).get("forward") is not switch:
                    continue
                if switch.before is None:
                    del layer.forward
                else:
                    layer.forward = switch.before


# -- what cannot be fused -------------------------------------------------------------------------------------------


def _refusal(model: Any, cache: RaggedCache) -> str | None:
    """Why the layers' step cannot be fused, None where it can. Triton is imported only where it would be used."""
    if model.device.type != "cuda" or model.dtype != DTYPE:
        return f"a step is fused on CUDA devices in bfloat16, not on {model.device.type} in {str(model.dtype)[6:]}"
    card = capability(model.device) or (0, 0)
    if card[0] < OLDEST_CARD:
        return f"a step is fused on compute capability {OLDEST_CARD}.0 and newer, not {card[0]}.{card[1]}"
    return TRITON.fault() or unfit(model, cache)


def unfit(model: Any, cache: RaggedCache) -> str | None:
    """What of the model or the cache, wherever it runs, is not of the form that can be fused; None if all is."""
    layers = getattr(model.get_decoder(), "layers", ())
    family = next((name for name in FAMILIES if layers and _is_own(layers[0], name, "DecoderLayer")), None)
    if family is None:
        return f"layers of {type(model).__name__} are not of a known form"
    if len(cache.pads) > MOST_ROWS:
        return f"a batch of {len(cache.pads)} sequences: at most {MOST_ROWS} can be fused"
    if len(layers) != len(cache.layers) or not all(isinstance(held, RaggedLayer) for held in cache.layers):
        return "not all layers are compressed"
    if _may_have_hooks_everywhere():
        return "there are hooks on all modules"
    for number, layer in enumerate(layers):
        reason = _odd(layer, family, model.dtype)
        if reason is not None:
            return f"layer {number}: {reason}"
    return None


def _may_have_hooks_everywhere() -> bool:
    """Whether there are hooks on all modules, or this release of torch does not say so where the tested ones do."""
    known = getattr(nn.modules.module, "_has_any_global_hook", None)
    return known is None or bool(known())


def _is_own(module: Any, family: str, name: str) -> bool:
    """Whether it is the family's own module of this kind as transformers has it, neither derived nor patched."""
    kind: Any = type(module)
    at_home = kind.__module__ == f"transformers.models.{family}.modeling_{family}"
    return at_home and kind.__name__ == FAMILIES[family] + name and kind.forward.__module__.startswith("transformers.")


def _odd(layer: Any, family: str, dtype: torch.dtype) -> str | None:
    """What stands against fusing this layer."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = [layer.input_layernorm, layer.post_attention_layernorm]
    norms += [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
    kinds = [(layer, "DecoderLayer"), (attention, "Attention"), (mlp, "MLP"), *((norm, "RMSNorm") for norm in norms)]
    for module, name in kinds:
        if not _is_own(module, family, name):
            return f"{type(module).__name__} is not transformers' own {FAMILIES[family]}{name}"
    reason = _changed(layer)
    if reason is not None:
        return reason
    linear = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    linear += [mlp.gate_proj, mlp.up_proj, mlp.down_proj]
    if any(type(module) is not nn.Linear for module in linear):
        return "its linear layers are not torch's own"
    if len({module.bias is None for module in linear[:3]}) > 1 or any(module.bias is not None for module in linear[3:]):
        return "linear layers have biases where none are expected"
    for parameter in layer.parameters():
        plain = type(parameter) is nn.Parameter and type(parameter.data) is torch.Tensor
        if not (plain and parameter.is_contiguous() and parameter.dtype == dtype):
            return "weights are not plain tensors of one type"
    activation = type(mlp.act_fn).__name__
    return None if activation in ("SiLU", "SiLUActivation") else f"the activation is {activation}, not SiLU"


def _changed(layer: Any) -> str | None:
    """What was done to the layer or its parts that a fused step would pass by."""
    for name, module in layer.named_modules():
        what = name or "it"
        if any(getattr(module, hooks, None) for hooks in HOOKS) or hasattr(module, "_hf_hook"):
            return f"{what} has hooks"
        if module.training:
            return f"{what} is in training mode"
        forward = vars(module).get("forward")
        passes_steps_on = module is layer and (isinstance(forward, _Switch) or hasattr(forward, "passes_steps_on"))
        if forward is not None and not passes_steps_on:
            return f"{what} has another forward than its class"
    return None


def _linear(module: Any, name: str) -> Biased:
    linear = getattr(module, name)
    return linear.weight, linear.bias


def _norm(module: Any) -> tuple[torch.Tensor, float]:
    return module.weight, module.variance_epsilon

"""The one hook: inside `with tapped(model, fn)` every attention call of a model goes through `fn`.

The model runs unmodified. transformers' attention interface is given a function that gathers all that a call says,
wherever the model says it (keywords, the layer, the config, the masks that were asked for), and hands it on as a
`LayerCall`. What the call says and headprobe does not understand is refused: results would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Lock
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from headprobe.attention.masks import MaskDesk, Masks
from headprobe.errors import ModelError
from headprobe.geometry import SLIDING_ATTENTION, layer_types_of

# Keywords of a call that do not change what a layer attends to.
HARMLESS = frozenset({
    "sliding_window", "dropout", "position_ids", "cache_position", "cache", "past_key_values", "num_items_in_batch",
    "position_embeddings", "is_causal", "output_attentions", "use_cache",
})  # fmt: skip


@dataclass(frozen=True, eq=False, slots=True)
class LayerCall:
    """One call of attention in one layer, `B` sequences, the last `T` of `K` positions.

    `query` `[B, H, T, d]`, `key` `[B, G, K, d]`, `value` `[B, G, K, d_v]`, `H` a multiple of `G`. `scaling`, `softcap`
    and `sinks` `[H]` as in `dense.attention_weights`. `window`: how many keys a query sees at most, itself included;
    None: all. `mask`: None for causal attention with that window, aligned to the end of the keys; otherwise
    `[B or 1, H or 1, T, K]`, boolean (True = seen) or numbers that are added to the scores; it takes precedence.
    `padding` `[B, K]`: the 2D mask of the batch (True = a token), where it has one. `module` is the model's own, and
    `model_name` its class.
    """

    layer: int
    module: Any
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    softcap: float | None
    sinks: torch.Tensor | None
    window: int | None
    mask: torch.Tensor | None
    padding: torch.Tensor | None
    model_name: str


# Gives the output `[B, H, T, d_v]`, or the output and the weights `[B, H, T, K]` that the model is to hand out.
LayerFunction = Callable[[LayerCall], torch.Tensor | tuple[torch.Tensor, torch.Tensor]]


@contextmanager
def tapped(
    model: Any, fn: LayerFunction, *, masks: Masks = Masks.WHOLE, once: bool = True, consequence: str = ""
) -> Iterator[None]:
    """Inside the block every attention call of `model` goes through `fn`; its own is restored, whatever happens.

    Taps can be nested, on one model (the later one has it) and on several, and end in any order. `masks`: see `Masks`.
    With `once` a layer that calls attention a second time in one pass is refused: its heads have more than one
    attention.

    Raises `ModelError`, which ends in `consequence`, for a model that does not go through transformers' attention
    interface; inside the block for calls that say more than can be understood.
    """
    tap = _Tap(model, fn, MaskDesk(type(model).__name__, masks), once)
    name = _take_name(tap)
    tap.before = [(config, config._attn_implementation) for config in _configs(model)]
    try:
        _switch(model, name, consequence)
        with _counted_passes(model, tap):
            yield
    finally:
        _give_back(tap, name)
        del _taps[name]


def is_tapped_by(model: Any, fn: LayerFunction) -> bool:
    """Whether every attention call of `model` goes through `fn` now."""
    tap = _taps.get(model.config._attn_implementation)
    return tap is not None and tap.fn is fn


def _switch(model: Any, name: str, consequence: str) -> None:
    refusal = ModelError(f"{type(model).__name__} does not use transformers' attention interface{consequence}")
    try:
        model.set_attn_implementation(name)
    except ValueError as error:
        raise refusal from error
    if model.config._attn_implementation != name:
        raise refusal


def _give_back(tap: _Tap, name: str) -> None:
    """Restore what a tap has; what a later tap has, which did not end first, comes back when that one ends."""
    owns = {id(config): own for config, own in tap.before}
    for later in _taps.values():
        later.before = [(config, owns[id(config)] if own == name else own) for config, own in later.before]
    if any(config._attn_implementation == name for config, _ in tap.before):
        _restore(tap.before)


def _restore(before: list[tuple[Any, str | None]]) -> None:
    """Give every config its own attention back; setting one sets those that lie in it, which then need another turn."""
    for _ in before:
        for config, own in before:
            if config._attn_implementation != own:
                config._attn_implementation = own


def _configs(model: Any) -> list[Any]:
    """The configs that say which attention a model and its parts use."""
    found: dict[int, Any] = {}
    waiting = [model.config]
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    waiting += [module.config for module in modules if hasattr(module, "set_attn_implementation")]
    while waiting:
        config = waiting.pop(0)
        if id(config) not in found:
            found[id(config)] = config
            inner = (getattr(config, name, None) for name in getattr(config, "sub_configs", ()))
            waiting += [part for part in inner if part is not None]
    return list(found.values())


@contextmanager
def _counted_passes(model: Any, tap: _Tap) -> Iterator[None]:
    with ExitStack() as stack:
        parts: list[Any] = [model, model.get_decoder()]
        for part in {id(part): part for part in parts}.values():
            stack.callback(part.register_forward_pre_hook(tap.begin_pass, with_kwargs=True).remove)
        yield


class _Tap:
    """A function that sits in a model's attention."""

    def __init__(self, model: Any, fn: LayerFunction, desk: MaskDesk, once: bool) -> None:
        self.fn, self.desk, self.once = fn, desk, once
        self.name = type(model).__name__
        self.before: list[tuple[Any, str | None]] = []  # configs and the attention that each had
        self._called: set[int] = set()
        self._passed: set[str] = set()
        self._windows: dict[int, int | None] = {}

    def begin_pass(self, _: Any, args: tuple[Any, ...], named: dict[str, Any]) -> None:
        """Before a forward pass of the model."""
        self._called.clear()
        self._passed.update(named)

    def attend(
        self,
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        scaling: float | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attention function: output `[B, T, H, d_v]` and weights, if `fn` gives any."""
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise ModelError(f"a {type(module).__name__} of {self.name} does not say which layer it is")
        if self.once:
            self._count(layer)
        softcap, sinks = more.pop("softcap", None), more.pop("s_aux", None)
        self._check(layer, more)
        window = self.desk.window(self._own_window(module, layer, more), layer)
        call = LayerCall(
            layer=layer,
            module=module,
            query=query,
            key=key,
            value=value,
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=softcap,
            sinks=sinks,
            window=window,
            mask=self.desk.settled(attention_mask, key.shape[2]),
            padding=self.desk.padding,
            model_name=self.name,
        )
        out = self.fn(call)
        output, weights = out if isinstance(out, tuple) else (out, None)
        return output.transpose(1, 2).contiguous(), weights

    def _count(self, layer: int) -> None:
        if layer in self._called:
            raise ModelError(
                f"{self.name} calls attention more than once in layer {layer}, so its heads have none of their own"
            )
        self._called.add(layer)

    def _check(self, layer: int, more: dict[str, Any]) -> None:
        """Refuse what a layer says beyond what is understood here; what came with the pass was not for it."""
        if more.get("is_causal") is False:
            raise ModelError(f"layer {layer} of {self.name} is not causal: headprobe needs a causal language model")
        for name, given in more.items():
            if given is None or name in HARMLESS or name in self._passed:
                continue
            raise ModelError(f"layer {layer} of {self.name} attends by {name!r}, which headprobe does not know")

    def _own_window(self, module: Any, layer: int, more: dict[str, Any]) -> int | None:
        """How many keys a query of this layer sees: by the list of layers in the config, by which models choose masks.

        Without such a list it is what the layer passes on, or what the config says of all layers.
        """
        if layer not in self._windows:
            config = module.config
            if "sliding_window" in more and not getattr(config, "layer_types", None):
                self._windows[layer] = more["sliding_window"]
            else:
                slides = layer_types_of(config)[layer] == SLIDING_ATTENTION
                self._windows[layer] = getattr(config, "sliding_window", None) if slides else None
        return self._windows[layer]


# -- names ------------------------------------------------------------------------------------------------------------

NAME = "headprobe"
_taps: dict[str, _Tap] = {}  # by the name under which transformers knows them
_registered: set[str] = set()
_naming = Lock()


def _take_name(tap: _Tap) -> str:
    """A name of transformers' attention interface that no other tap has; those that were given back are used again."""
    with _naming:
        number = 0
        while (name := f"{NAME}_{number}") in _taps:
            number += 1
        _taps[name] = tap
    if name not in _registered:
        AttentionInterface.register(name, lambda *args, **more: _taps[name].attend(*args, **more))
        AttentionMaskInterface.register(name, lambda *args, **asked: _taps[name].desk.mask(*args, **asked))
        _registered.add(name)
    return name

"""Which masks a tapped model is given, and what is learnt from those that it asks for.

transformers asks for a mask before a pass, once for each kind of layer, and says what it is to hide: what lies ahead,
what lies before a sliding window, pads. Plain causal masks and sliding windows are never built: they are known by their
window, which is more than the layers themselves pass on.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Any

import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

from headprobe.errors import ModelError


class Masks(Enum):
    """What a model is given where it asks for a mask.

    `WHOLE`: nothing where a layer is causal, with a sliding window or without, and no token is a pad; otherwise the
    whole mask `[B, 1, T, K]`. `PADDING`: nothing, ever; the 2D padding mask goes to the layers, and a model that wants
    any other mask is refused.
    """

    WHOLE = "whole"
    PADDING = "padding"


class MaskDesk:
    """Answers one tapped model's questions for masks, and remembers what they say.

    `windows`: the windows of the kinds of layers asked for so far (None: a layer that sees everything before it);
    `padding` `[B, K]`: the 2D mask of the last question.
    """

    def __init__(self, model_name: str, policy: Masks) -> None:
        self.model_name, self.policy = model_name, policy
        self.windows: set[int | None] = set()
        self.padding: torch.Tensor | None = None
        self._left_out = False
        self._given: deque[int] = deque(maxlen=8)  # addresses of the last masks that were built

    def mask(self, *args: Any, **asked: Any) -> torch.Tensor | None:
        """The answer to one question, asked as transformers asks its mask functions."""
        window = asked.get("local_size")
        plain = bool(asked.get("allow_is_causal_skip")) and _is_causal(asked)
        if plain:
            self.windows.add(window)
        self.padding = asked.get("attention_mask")
        if self.policy is Masks.PADDING:
            if not plain:
                raise ModelError(f"{self.model_name} works with attention masks {_reason(asked)}")
            return None
        if plain and self.padding is None and _ends_together(asked):
            self._left_out = True
            return None
        built = sdpa_mask(*args, **asked)
        if built is not None:
            self._given.append(built.untyped_storage().data_ptr())
        return built

    def settled(self, mask: torch.Tensor | None, keys: int) -> torch.Tensor | None:
        """The mask that a layer came with, cut to its `keys`.

        Raises `ModelError` for one that is not 4D, for one that the model made of nothing where it was given none (what
        lies ahead is not hidden in it), and for any where masks are never built.
        """
        if mask is None:
            return None
        if self.policy is Masks.PADDING:
            raise ModelError(
                f"{self.model_name} gives its layers masks of its own, which a compressed cache can't follow"
            )
        if mask.ndim != 4:
            raise ModelError(f"{self.model_name} gives its layers masks of the shape {list(mask.shape)}, not 4D")
        if self._left_out and mask.untyped_storage().data_ptr() not in self._given:
            raise ModelError(f"{self.model_name} makes attention masks of its own, which headprobe does not know")
        return mask[..., :keys]

    def window(self, own: int | None, layer: int) -> int | None:
        """The window of a layer that says itself that it has the window `own`.

        The masks take precedence, as in the model's own attention: where all layers are asked for with one window,
        that is it, whatever the layer says. Raises `ModelError` for a window that no mask was asked for.
        """
        if own in self.windows or not self.windows:
            return own
        if len(self.windows) == 1:
            return next(iter(self.windows))
        known = ", ".join("none" if window is None else str(window) for window in sorted(self.windows, key=str))
        raise ModelError(f"layer {layer} of {self.model_name} has a window of {own}, its masks have {known}")


def _is_causal(asked: dict[str, Any]) -> bool:
    """Whether the mask hides what lies ahead, and what lies before a sliding window, and nothing else."""
    if asked.get("local_size") is None:
        return asked.get("mask_function") is causal_mask_function
    return getattr(asked.get("config"), "attention_chunk_size", None) is None


def _ends_together(asked: dict[str, Any]) -> bool:
    """Whether the last query stands at the last key, so that no position has to be known (not in static caches)."""
    return bool(asked["q_offset"] + asked["q_length"] == asked["kv_offset"] + asked["kv_length"])


def _reason(asked: dict[str, Any]) -> str:
    if asked.get("local_size") is not None and not _is_causal(asked):
        return "that cut the context into chunks, which a compressed cache does not know"
    if _is_causal(asked):
        return "that it changes, and a compressed cache builds none"
    return "that are not plainly causal, which a compressed cache does not know"

"""What a compressed cache refuses: methods of other caches, options of `generate()`, masks that it cannot follow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig

from headprobe.errors import OptionError
from headprobe.models.releases import CACHE_NAMES

# What transformers' caches can do and a compressed one cannot, refused in one place.


class Refusals:
    """Methods of a cache, or of one of its layers, that a compressed cache has no answer for; before their base."""

    def crop(self, tokens_to_remove: int) -> None:
        """Refused, unless nothing is to be removed."""
        if tokens_to_remove:
            refuse("crop (assisted decoding takes tokens back)")

    def reorder_cache(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("beam search")

    def offload(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("offloading")

    def batch_repeat_interleave(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("repeating sequences of the batch")

    def batch_select_indices(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refused."""
        refuse("selecting sequences of the batch")


def refuse(what: str) -> NoReturn:
    """Raise `OptionError`: a compressed cache cannot do `what`."""
    raise OptionError(f"a compressed cache does not support {what}: entries that were evicted are gone")


# Attention masks as a compressed cache understands them: pads stand before the prompts, and nowhere else.


def check_mask(mask: Any, batch: int, tokens: int) -> list[int]:
    """The pads before each of `batch` sequences, from a mask over all `tokens` so far and new (1 = a token).

    Raises `OptionError` for a mask of another shape, and for pads anywhere else.
    """
    if not isinstance(mask, torch.Tensor) or mask.ndim != 2:
        kind = f"shape {tuple(mask.shape)}" if isinstance(mask, torch.Tensor) else f"type {type(mask).__name__}"
        raise OptionError(f"the attention mask has {kind}, need [B, N]: 1 for a token, 0 for a pad")
    if tuple(mask.shape) != (batch, tokens):
        need = f"{batch} x {tokens}, all tokens so far and new"
        raise OptionError(f"the attention mask covers {mask.shape[0]} x {mask.shape[1]} tokens, need {need}")
    return left_pads(mask)


def left_pads(mask: torch.Tensor) -> list[int]:
    """Leading zeros in each row of a 2D attention mask; `OptionError` for a zero behind a one, or an empty row."""
    seen = mask.bool()
    pads: Sequence[int] = seen.int().argmax(1).tolist()
    if not bool(seen.any(1).all()) or [mask.shape[1] - pad for pad in pads] != seen.sum(1).tolist():
        raise OptionError(
            "prompts must be padded on the left, with at least one token each; no pad may follow a token, "
            "so give those that pad an answer which ended early as tokens"
        )
    return list(pads)


# Which options of transformers' `generate()` a compressed cache can serve; the others are refused by name.

_CANNOT_TAKE_BACK = "it takes tokens back, and entries that were evicted for them are gone"
_OTHER_CALLS = "it calls the model on the side, without this cache"


def _is_given(value: Any) -> bool:
    return value is not None


def _beyond_one(value: Any) -> bool:
    return value is not None and value != 1


# name: (whether this value is refused, why); None and what transformers takes for "off" are not
_REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_beam_groups": (_beyond_one, "a compressed cache cannot reorder its entries"),
    "constraints": (_is_given, "a compressed cache cannot reorder its entries"),
    "force_words_ids": (_is_given, "a compressed cache cannot reorder its entries"),
    "assistant_model": (_is_given, _CANNOT_TAKE_BACK),
    "assistant_early_exit": (_is_given, _CANNOT_TAKE_BACK),
    "prompt_lookup_num_tokens": (_is_given, _CANNOT_TAKE_BACK),
    "speculation_type": (_is_given, _CANNOT_TAKE_BACK),
    "use_mtp": (bool, _CANNOT_TAKE_BACK),
    "is_assistant": (bool, _CANNOT_TAKE_BACK),
    "penalty_alpha": (bool, "contrastive search repeats and selects sequences of the cache"),
    "dola_layers": (_is_given, "transformers loads the code of DoLa from the hub, and what it does is not known"),
    "custom_generate": (_is_given, "what a custom loop does with the cache is not known"),
    "guidance_scale": (_beyond_one, _OTHER_CALLS),
    "negative_prompt_ids": (_is_given, _OTHER_CALLS),
    "negative_prompt_attention_mask": (_is_given, _OTHER_CALLS),
    "token_healing": (bool, _OTHER_CALLS),
    "synced_gpus": (bool, "sequences that have ended would go on filling the cache"),
    "output_attentions": (bool, "attention weights over evicted entries do not exist"),
    "prefill_chunk_size": (
        _is_given,
        "transformers would compress the first chunk as if it were the prompt; use prefill_chunk of compress()",
    ),
    # transformers itself drops "hybrid", which old folders of Gemma recommend
    "cache_implementation": (lambda value: value not in (None, "hybrid"), "the session brings its own cache"),
    **dict.fromkeys((*CACHE_NAMES, "cache_params"), (_is_given, "the session brings its own cache")),
}


@dataclass(frozen=True, eq=False)
class GivenPrompt:
    """What a call of `generate` is to read: `ids` `[B, N]` int, or None for none or embeddings (`is_embedded`); `mask`
    `[B, N]`, or None. Rows stand `copies` times, as `num_return_sequences` asks."""

    ids: torch.Tensor | None
    mask: torch.Tensor | None
    is_embedded: bool

    @classmethod
    def of(cls, inputs: Any, options: Mapping[str, Any], copies: int = 1) -> GivenPrompt:
        """The prompt in the arguments of `generate`. Raises `OptionError` for tensors of another shape or kind."""
        named, embeds = options.get("input_ids"), options.get("inputs_embeds")
        if inputs is not None and named is not None:
            raise OptionError("the prompt is given twice, as inputs and as input_ids")
        ids, mask = named if inputs is None else inputs, options.get("attention_mask")
        if ids is not None:
            _check_ids(ids)
        prompt = ids if embeds is None else embeds
        if mask is not None and prompt is not None:
            check_mask(mask, *prompt.shape[:2])
        rows = [given if given is None else given.repeat_interleave(copies, dim=0) for given in (ids, mask)]
        return cls(rows[0], rows[1], embeds is not None)


def check_options(model: Any, config: GenerationConfig | None, options: Mapping[str, Any]) -> None:
    """Refuse what a compressed cache cannot do, whether `options`, `config` or the model's own settings ask for it.

    Raises `OptionError` that names the option.
    """
    beams = setting("num_beams", model, config, options)
    if _beyond_one(beams):
        raise OptionError(f"beam search with {beams} beams: a compressed cache cannot reorder its entries")
    for name, (refused, why) in _REFUSED.items():
        value = setting(name, model, config, options)
        if refused(value):
            raise OptionError(f"generate(... {name}={_shown(value)}) does not work with a compressed cache: {why}")
    # None counts as off where it is given by name; the model's default is on
    switched_off = "use_cache" in options and not options["use_cache"]
    if switched_off or setting("use_cache", model, config, options) is False:
        raise OptionError("generate(... use_cache=False) does not work with a compressed cache: it is the cache")


def num_copies(model: Any, config: GenerationConfig | None, options: Mapping[str, Any]) -> int:
    """How often `generate` repeats each row of the prompt (`num_return_sequences`)."""
    number = setting("num_return_sequences", model, config, options)
    return number if isinstance(number, int) and number > 1 else 1


def setting(name: str, model: Any, config: GenerationConfig | None, options: Mapping[str, Any]) -> Any:
    """The value that counts for transformers: by name, else of `config`, else of the model's generation config."""
    if name in options:
        return options[name]
    own = getattr(model, "generation_config", None)
    return next((found for found in (getattr(c, name, None) for c in (config, own)) if found is not None), None)


def _check_ids(ids: Any) -> None:
    if not isinstance(ids, torch.Tensor):
        raise OptionError(f"the prompt is of type {type(ids).__name__}, need a tensor of token ids")
    if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool or 0 in ids.shape:
        raise OptionError(f"the prompt has shape {tuple(ids.shape)} and type {ids.dtype}, need token ids [B, N]")


def _shown(value: Any) -> str:
    return f"{value!r:.40}" if isinstance(value, str | int | float) else "..."

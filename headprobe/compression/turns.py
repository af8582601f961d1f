"""Turns of a conversation: a later one must go on with what was read, and every pass of the model is written down."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from headprobe.compression.generate_options import GivenPrompt
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.errors import OptionError
from headprobe.models.releases import given_cache


def check_turn(cache: RaggedCache, prompt: GivenPrompt) -> None:
    """Raise `OptionError` unless `prompt` goes on with what `cache` has read, with the same padding."""
    if cache.is_empty and not cache.conversation.is_torn:
        return
    cache.conversation.check(None if prompt.is_embedded else prompt.ids, cache.tokens_seen, cache.pads)
    assert prompt.ids is not None
    if prompt.mask is not None:
        cache.check_turn(prompt.mask, len(prompt.ids), prompt.ids.shape[1] - cache.tokens_seen)
    elif any(cache.pads):
        raise OptionError("the conversation began with padded prompts: a later turn needs an attention_mask")


@contextmanager
def followed(model: Any) -> Iterator[None]:
    """Let compressed caches hear which tokens `model` is about to read, and refuse pads that they cannot leave out.

    So a cache knows its conversation however the model was called: by `generate` or directly.
    """
    decoder = model.get_decoder()
    hooks = [
        decoder.register_forward_pre_hook(_before, with_kwargs=True),
        decoder.register_forward_hook(_after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = given_cache(kwargs)
    ids = kwargs.get("input_ids", args[0] if args else None)
    prompt = kwargs.get("inputs_embeds") if ids is None else ids
    if not isinstance(cache, RaggedCache) or prompt is None:
        return
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if isinstance(mask, dict):  # one for each kind of layer, all made from the same
        mask = next(iter(mask.values()), None)
    cache.check_turn(mask, *prompt.shape[:2])
    cache.conversation.begin(prompt, cache.tokens_seen)


def _after(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache = given_cache(kwargs)
    if isinstance(cache, RaggedCache):
        cache.conversation.end()

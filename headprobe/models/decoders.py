"""Read a model's config and refuse what is no decoder with a standard attention interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_MAPPING_NAMES,
)

from headprobe.errors import ModelError, shown
from headprobe.geometry import ModelGeometry
from headprobe.models.json_files import read_object
from headprobe.models.quiet import quiet_transformers
from headprobe.models.windows import config_window, tokenizer_window

_TRUST = "headprobe.load_model(..., trust_remote_code=True)"
_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def read_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The transformers config in `folder`, checked. Raises `ModelError` saying what is wrong with it."""
    try:
        given = read_object(folder / "config.json")
    except ModelError as error:
        reason = str(error).removeprefix(f"{folder / 'config.json'} ")
        raise ModelError(f"{folder}: broken or unknown config.json: it {reason}") from None
    if given is None:
        raise ModelError(f"{folder}: no config.json in this folder, so it holds no transformers model")
    try:
        with quiet_transformers():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{folder}: the model brings its own code; it runs only with {_TRUST}") from error
        raise ModelError(f"{folder}: broken or unknown config.json: {whole(error)}") from error
    check_decoder(config, folder, trust_remote_code=trust_remote_code)
    return config


def check_decoder(config: Any, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise `ModelError` unless `config` is that of a causal decoder that can be probed."""
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder}: {kind} is an encoder-decoder; headprobe needs a decoder-only language model")
    if trust_remote_code and "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return
    if _is_encoder(config):
        raise ModelError(f"{folder}: {kind} is an encoder; headprobe needs a decoder-only language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{folder}: {kind} is no causal language model (transformers maps it to none)")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(model_class, "_supports_attention_backend", False):
        raise ModelError(f"{folder}: {kind} has no standard attention interface in transformers, nothing can be read")


def _is_encoder(config: Any) -> bool:
    """Whether the tokens of a model look in both directions.

    By what transformers maps a config to, since `is_decoder` is also False where nothing reads it (GPT-NeoX): to a
    masked language model, or to a bare model that is called an encoder, unless `is_decoder` makes it one; or by a
    switch of the text config (EmbeddingGemma).
    """
    if not getattr(config, "is_decoder", False):
        bare = MODEL_MAPPING_NAMES.get(getattr(config, "model_type", ""), "")
        if type(config) in MODEL_FOR_MASKED_LM_MAPPING or (isinstance(bare, str) and bare.endswith("Encoder")):
            return True
    try:
        text = _text_config(config)
    except ModelError:  # said by `read_geometry`
        return False
    both_ways = getattr(text, "use_bidirectional_attention", None) in (True, "all")
    return both_ways or getattr(text, "is_causal", None) is False


def _text_config(config: Any) -> Any:
    """The part of a config that describes the language model."""
    try:
        text = config.get_text_config(decoder=True)
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"config.json holds no language model that could be found: {one_line(error)}") from error
    if text is None or isinstance(text, str | int | float | list | dict):
        raise ModelError(f"the language model's part of config.json is {shown(text)}, need an object")
    return text


def read_geometry(config: Any, folder: Path) -> ModelGeometry:
    """The geometry of the text part of `config`. Raises `ModelError` where it has none."""
    try:
        geometry = ModelGeometry.from_config(_text_config(config))
    except (ModelError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: {one_line(error)}") from error
    other = sorted(set(geometry.layer_types) - _ATTENTION_KINDS)
    if other:
        raise ModelError(f"{folder}: layers of the kind {', '.join(other)} have no attention that could be read")
    return geometry


def read_window(config: Any, tokenizer: Any | None, folder: Path) -> int:
    """Tokens that the model can see: by its config (see `config_window`), or the tokenizer's limit if that is smaller.

    Raises `ModelError` where neither states one, or not as a number.
    """
    try:
        limits = [config_window(_text_config(config)), tokenizer_window(tokenizer)]
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from error
    stated = [limit for limit in limits if limit is not None]
    if not stated:
        raise ModelError(f"{folder}: neither config (max_position_embeddings) nor tokenizer states a window")
    return min(stated)


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, cut at `limit` characters; its class where it has no text.

    >>> one_line(ValueError("first\\nsecond"))
    'first'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:limit].rstrip(".:") if lines else type(error).__name__


def whole(error: BaseException, limit: int = 300) -> str:
    """All of an error's text in one line, cut at `limit` characters; its class where it has no text.

    >>> whole(ValueError("Field 'heads':\\n    expected int"))
    "Field 'heads': expected int"
    """
    text = " ".join(str(error).split())
    return text[:limit].rstrip(".:") if text else type(error).__name__

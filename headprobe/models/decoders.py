"""Read a model's config and refuse what is no decoder with a standard attention interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headprobe.errors import ModelError
from headprobe.geometry import ModelGeometry
from headprobe.models.quiet import quiet_transformers

_TRUST = "headprobe.load_model(..., trust_remote_code=True)"
_SANE_LENGTH = 10**9
_ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}


def read_config(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The transformers config in `folder`, checked. Raises `ModelError` saying what is wrong with it."""
    from transformers import AutoConfig

    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: no config.json in this folder, so it holds no transformers model")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise ModelError(f"{folder}: the model brings its own code; it runs only with {_TRUST}") from error
        raise ModelError(f"{folder}: broken or unknown config.json: {one_line(error)}") from error
    check_decoder(config, folder, trust_remote_code=trust_remote_code)
    return config


def check_decoder(config: Any, folder: Path, *, trust_remote_code: bool = False) -> None:
    """Raise `ModelError` unless `config` is that of a causal decoder that can be probed."""
    kind = getattr(config, "model_type", type(config).__name__)
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{folder}: {kind} is an encoder-decoder; headprobe needs a decoder-only language model")
    if getattr(config, "is_decoder", None) is False:
        raise ModelError(f"{folder}: {kind} is an encoder; headprobe needs a decoder-only language model")
    if trust_remote_code and getattr(config, "auto_map", None):
        return
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelError(f"{folder}: {kind} is no causal language model (transformers maps it to none)")
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    if not getattr(model_class, "_supports_attention_backend", False):
        raise ModelError(f"{folder}: {kind} has no standard attention interface in transformers, nothing can be read")


def read_geometry(config: Any, folder: Path) -> ModelGeometry:
    """The geometry of the text part of `config`. Raises `ModelError` where it has none."""
    try:
        geometry = ModelGeometry.from_config(config.get_text_config(decoder=True))
    except (ModelError, AttributeError, TypeError, ValueError) as error:
        raise ModelError(f"{folder}: {one_line(error)}") from error
    other = sorted(set(geometry.layer_types) - _ATTENTION_KINDS)
    if other:
        raise ModelError(f"{folder}: layers of the kind {', '.join(other)} have no attention that could be read")
    return geometry


def read_window(config: Any, tokenizer: Any | None, folder: Path) -> int:
    """Tokens that the model can see: its positions, or the tokenizer's limit where that is smaller."""
    limits = [getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)]
    limits.append(getattr(tokenizer, "model_max_length", None))
    sane = [limit for limit in limits if isinstance(limit, int) and 0 < limit < _SANE_LENGTH]
    if not sane:
        raise ModelError(f"{folder}: neither config (max_position_embeddings) nor tokenizer states a window")
    return min(sane)


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's text, cut at `limit` characters; its class where it has no text.

    >>> one_line(ValueError("first\\nsecond"))
    'first'
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:limit].rstrip(".:") if lines else type(error).__name__

"""What a model's config says: whether it is a decoder that can be measured, its geometry, window and end tokens."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite
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
from headprobe.models.files import read_object
from headprobe.models.releases import quiet_transformers

# How many tokens a model can see: its positions, and what the scaling of its rotary embeddings makes of them.

SANE_LENGTH = 10**9  # tokens; tokenizers without a limit state 1e30
LOCAL = ("sliding_attention", "chunked_attention", "linear_attention")  # kinds of layers that set no limit

# With these kinds of scaling `max_position_embeddings` often is the length before it, as cards and transformers'
# documentation ask for. With llama3, longrope and the others it is the length that the model was trained to.
SCALED = ("linear", "dynamic", "yarn")
LONG_ALREADY = ("gemma3",)  # states 131,072 with a linear factor of 8, and was trained on 32,768


def config_window(config: Any) -> int | None:
    """Tokens that a text config stands for; None where it states none.

    Scaling by "linear", "dynamic" and "yarn" makes it `original_max_position_embeddings x factor`, if that is more than
    `max_position_embeddings` (which also is what counts as original where that is not stated); by "llama3", "longrope"
    and others it is `max_position_embeddings`. Understands `rope_parameters` and the older `rope_scaling`, flat or one
    for each kind of layer, of which those that see the whole context count. Raises `ModelError` for what is no number.

    >>> from types import SimpleNamespace
    >>> yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    >>> config_window(SimpleNamespace(max_position_embeddings=40960, rope_parameters=yarn))
    131072
    """
    stated = _length(getattr(config, "max_position_embeddings", None), "max_position_embeddings")
    if stated is None or str(getattr(config, "model_type", "")).startswith(LONG_ALREADY):
        return stated
    return min((_scaled(stated, rope, config) for rope in _ropes(config)), default=stated)


def tokenizer_window(tokenizer: Any | None) -> int | None:
    """The tokenizer's `model_max_length`; None where it states none. Raises `ModelError` for what is no number."""
    limit = getattr(tokenizer, "model_max_length", None)
    if limit is None or limit == inf or (_is_number(limit) and (limit == 0 or limit >= SANE_LENGTH)):
        return None
    if not _is_number(limit) or limit < 1 or limit != int(limit):
        raise ModelError(
            f"model_max_length in tokenizer_config.json is {shown(limit)}, need a whole number of at least 1"
        )
    return int(limit)


def _length(value: Any, name: str) -> int | None:
    if value is None or (_is_number(value) and isinstance(value, int) and value >= SANE_LENGTH):
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"{name} in config.json is {shown(value)}, need a whole number of at least 1")
    return value


def _ropes(config: Any) -> Iterator[dict[str, Any]]:
    """The scalings of the layers that see the whole context; of all where none does. Layers without any give none."""
    name = "rope_parameters" if getattr(config, "rope_parameters", None) else "rope_scaling"
    given = getattr(config, name, None) or {}
    if not isinstance(given, dict):
        raise ModelError(f"{name} in config.json is {shown(given)}, need an object")
    if not any(isinstance(part, dict) for part in given.values()):
        yield given
        return
    kinds = set(getattr(config, "layer_types", None) or ())
    parts = {kind: part for kind, part in given.items() if isinstance(part, dict) or part is None}
    parts = {kind: part for kind, part in parts.items() if kind in kinds} or parts
    wide = {kind: part for kind, part in parts.items() if kind not in LOCAL} or parts
    yield from (part or {} for part in wide.values())


def _scaled(stated: int, rope: dict[str, Any], config: Any) -> int:
    kind, factor = rope.get("rope_type", rope.get("type")), rope.get("factor")
    if kind not in SCALED or factor is None:
        return stated
    name = "original_max_position_embeddings"
    original = _length(rope.get(name, getattr(config, name, None)), name) or stated
    if not _is_number(factor) or not 0 < factor * original < SANE_LENGTH:
        raise ModelError(f"the factor of {kind} scaling in config.json is {shown(factor)}, need a number of at least 1")
    return max(stated, int(factor * original))


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and (isinstance(value, int) or isfinite(value))
    )


# Rotary embeddings whose frequencies change with the length of what is read.

MOVING = ("dynamic", "longrope")  # they compare the positions of a pass with a limit


def moving_rope(model: Any) -> str | None:
    """The kind of rotary embedding of `model` whose frequencies depend on the length of a pass; None where none does.

    Keys that were computed in a shorter pass are then rotated by other frequencies than those of a longer one, and
    "dynamic" ones keep the frequencies of the longest pass so far until a short one comes.
    """
    given = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None) or {}
    kinds = [part.get("rope_type") for part in (given, *given.values()) if isinstance(part, dict)]
    return next((kind for kind in kinds if kind in MOVING), None)


# Read a model's config and refuse what is no decoder with a standard attention interface.

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
        raise ModelError(f"{folder}: {kind} is not a causal language model (transformers maps it to none)")
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


# Which tokens end a sequence, and the `generation_config.json` that says so.

GENERATION_FILE = "generation_config.json"
LARGEST_ID = 2**31 - 1


def token_ids(value: Any, where: str) -> set[int]:
    """The token ids in `value`: one, a list of them, or None. Raises `ModelError`, which begins with `where`.

    >>> sorted(token_ids([2, 7], "eos_token_id"))
    [2, 7]
    """
    found = value if isinstance(value, list | tuple) else [] if value is None else [value]
    if not all(isinstance(i, int) and not isinstance(i, bool) and 0 <= i <= LARGEST_ID for i in found):
        raise ModelError(f"{where} is {shown(value)}, need a token id (a whole number of 0 or more) or a list of them")
    return set(found)


def end_token_ids(model: Any, tokenizer: Any) -> set[int]:
    """All token ids that end a sequence, by the model's generation config and the tokenizer."""
    stated = token_ids(getattr(model.generation_config, "eos_token_id", None), "eos_token_id of the generation config")
    return stated | token_ids(tokenizer.eos_token_id, "eos_token_id of the tokenizer")


def check_generation_config(folder: Path) -> None:
    """Raise `ModelError` for a `generation_config.json` that transformers would silently ignore, or fail at.

    It may be missing.
    """
    path = folder / GENERATION_FILE
    found = read_object(path)
    if found is None:
        return
    token_ids(found.get("eos_token_id"), f"{path}: eos_token_id")
    for name in ("bos_token_id", "pad_token_id"):
        value = found.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or abs(value) > LARGEST_ID):
            raise ModelError(f"{path}: {name} is {shown(value)}, need a token id (a whole number)")
    try:
        with quiet_transformers():
            transformers.GenerationConfig.from_pretrained(folder)
    except Exception as error:
        raise ModelError(f"{path} cannot be used: {whole(error)}") from error

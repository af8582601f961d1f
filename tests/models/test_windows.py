"""How many tokens configs and tokenizers stand for, by hand from published cards."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config

from headprobe.errors import ModelError
from headprobe.models.config import config_window, tokenizer_window

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


def window(positions: Any, rope: Any, name: str = "rope_parameters", **more: Any) -> int | None:
    return config_window(SimpleNamespace(max_position_embeddings=positions, **{name: rope}, **more))


@pytest.mark.parametrize(
    ("positions", "rope", "tokens"),
    [
        (2048, None, 2048),
        (2048, {"rope_type": "default"}, 2048),
        (32768, YARN, 131072),  # Qwen2.5's card
        (40960, YARN, 131072),  # Qwen3's card
        (131072, YARN, 131072),
        (163840, {"rope_type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163840),  # DeepSeek-V3
        (131072, {"rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096}, 131072),  # gpt-oss
        (512, {"rope_type": "yarn", "factor": 4.0}, 2048),
        (131072, {"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 4096}, 131072),
        (4096, {"rope_type": "linear", "factor": 4.0}, 16384),  # Vicuna 1.5, 16k
        (32768, {"rope_type": "dynamic", "factor": 2.0}, 65536),  # InternLM2.5
        (2048, {"rope_type": "dynamic", "alpha": 1000.0, "factor": 1.0}, 2048),
        (512, {"rope_type": "linear", "factor": 1.5}, 768),
        (512, {"rope_type": "linear", "factor": 0.5}, 512),
        (131072, {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 131072),
        (131072, {"rope_type": "longrope", "factor": 32.0, "original_max_position_embeddings": 4096}, 131072),
        (131072, {"rope_type": "su", "original_max_position_embeddings": 4096}, 131072),
        (131072, {"rope_type": "proportional", "factor": 8.0}, 131072),
        (4096, {"rope_type": "mrope", "mrope_section": [16, 24, 24]}, 4096),
    ],
)
def test_scaling_counts_as_published_configs_mean_it(positions: int, rope: Any, tokens: int) -> None:
    assert window(positions, rope) == tokens


def test_the_older_form_means_the_same() -> None:
    assert window(4096, {"type": "linear", "factor": 4.0}, name="rope_scaling") == 16384
    assert (
        window(32768, {"type": "yarn", "factor": 4.0}, "rope_scaling", original_max_position_embeddings=8192) == 32768
    )


@pytest.mark.parametrize("form", ["rope_scaling", "rope_parameters"])
@pytest.mark.parametrize("kind", ["yarn", "linear", "dynamic"])
def test_transformers_configs_are_read_in_both_forms(form: str, kind: str) -> None:
    rope = {("type" if form == "rope_scaling" else "rope_type"): kind, "factor": 4.0, "rope_theta": 1e4}
    assert config_window(LlamaConfig(max_position_embeddings=512, **{form: rope})) == 2048


def test_a_config_whose_positions_are_those_after_scaling_is_left_as_it_is() -> None:
    factors = [1.0] * 48
    rope = {"type": "longrope", "short_factor": factors, "long_factor": factors}
    phi = Phi3Config(max_position_embeddings=131072, original_max_position_embeddings=4096, rope_scaling=rope)
    assert config_window(phi) == 131072
    gemma = Gemma3TextConfig(max_position_embeddings=131072, rope_scaling={"rope_type": "linear", "factor": 8.0})
    assert config_window(gemma) == 131072


def test_of_several_scalings_that_of_the_layers_that_see_everything_counts() -> None:
    kinds = ("sliding_attention", "full_attention")
    rope = {"sliding_attention": {"rope_type": "default"}, "full_attention": {"rope_type": "linear", "factor": 4.0}}
    assert window(512, rope, layer_types=kinds) == 2048
    turned = {"sliding_attention": {"rope_type": "linear", "factor": 4.0}, "full_attention": {"rope_type": "default"}}
    assert window(512, turned, layer_types=kinds) == 512
    assert window(512, turned, layer_types=("sliding_attention",)) == 2048
    without = {"sliding_attention": {"rope_type": "linear", "factor": 4.0}, "full_attention": None}
    assert window(512, without, layer_types=kinds) == 512
    assert window(65536, {"full_attention": {**YARN, "factor": 8.0, "original_max_position_embeddings": 8192}}) == 65536


@pytest.mark.parametrize("positions", [None, 10**12])
def test_no_positions_are_no_window(positions: int | None) -> None:
    assert window(positions, YARN) is None


@pytest.mark.parametrize("value", ["x", True, 0, -1, 1.5, float("nan"), [1]])
def test_positions_that_are_no_number_are_named(value: Any) -> None:
    with pytest.raises(ModelError, match=r"max_position_embeddings in config.json is .*, need a whole number"):
        window(value, None)


@pytest.mark.parametrize("factor", ["x", True, 0, -4.0, 1e300, float("inf"), float("nan"), [4.0]])
def test_a_factor_that_is_no_number_is_named(factor: Any) -> None:
    with pytest.raises(ModelError, match=r"the factor of yarn scaling in config.json is .*, need a number"):
        window(512, {**YARN, "factor": factor})


def test_scaling_that_is_no_object_is_named() -> None:
    with pytest.raises(ModelError, match=r"rope_scaling in config.json is 'yarn', need an object"):
        window(512, "yarn", name="rope_scaling")
    with pytest.raises(ModelError, match=r"original_max_position_embeddings in config.json is 'x'"):
        window(512, {**YARN, "original_max_position_embeddings": "x"})


@pytest.mark.parametrize(
    ("limit", "tokens"),
    [(512, 512), (512.0, 512), (None, None), (0, None), (10**30, None), (1e30, None), (float("inf"), None)],
)
def test_a_tokenizer_states_its_limit_or_none(limit: Any, tokens: int | None) -> None:
    assert tokenizer_window(SimpleNamespace(model_max_length=limit)) == tokens
    assert tokenizer_window(None) is None


@pytest.mark.parametrize("limit", ["x", True, -5, 1.5, float("nan"), [[1]], {}])
def test_a_limit_that_is_no_number_is_named(limit: Any) -> None:
    with pytest.raises(ModelError, match=r"model_max_length in tokenizer_config.json is .*, need a whole number"):
        tokenizer_window(SimpleNamespace(model_max_length=limit))

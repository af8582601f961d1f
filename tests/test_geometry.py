"""Heads and layers as configs state them, and the configs whose layers differ."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoConfig, DeepseekV3Config, Gemma4TextConfig, MllamaConfig, Qwen3Config

from headprobe.errors import ModelError
from headprobe.geometry import ModelGeometry

KINDS = ["sliding_attention", "full_attention"]
PLAIN = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "hidden_size": 64}


def read(**changes: Any) -> ModelGeometry:
    """As from the plain table of a `config.json`."""
    return ModelGeometry.from_config(SimpleNamespace(**{**PLAIN, **changes}))


def gemma4(**changes: Any) -> Gemma4TextConfig:
    sizes = {**PLAIN, "layer_types": KINDS, "sliding_window": 8, "hidden_size_per_layer_input": 8}
    return Gemma4TextConfig(**{**sizes, **changes})


def test_numbers_that_are_left_out_follow_from_the_others() -> None:
    assert read(num_key_value_heads=None, head_dim=None) == ModelGeometry(2, 4, 4, 16, ("full_attention",) * 2)


def test_keys_that_are_wider_than_the_rotated_part_are_counted_whole() -> None:
    config = DeepseekV3Config(num_hidden_layers=2, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=12)
    assert ModelGeometry.from_config(config).head_dim == 24


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"])
@pytest.mark.parametrize("value", ["x", True, 0, -1, 10**12, 1.5, float("nan"), {"a": 1}])
def test_what_is_no_number_is_named_with_its_key(name: str, value: Any) -> None:
    with pytest.raises(ModelError, match=f"{name} in config.json is .*, need a whole number from 1 to 65536"):
        read(**{name: value})


@pytest.mark.parametrize("value", ["full", 3, [1, 2], True])
def test_kinds_of_layers_that_are_no_list_of_names_are_named(value: Any) -> None:
    with pytest.raises(ModelError, match="layer_types in config.json is .*, need a list of names"):
        read(layer_types=value)


def test_a_sliding_window_that_is_no_number_is_named() -> None:
    with pytest.raises(ModelError, match="sliding_window in config.json is 'x'"):
        read(sliding_window="x")


def test_a_config_without_heads_is_refused() -> None:
    with pytest.raises(ModelError, match="config.json has no num_hidden_layers and num_attention_heads"):
        ModelGeometry.from_config(SimpleNamespace())
    with pytest.raises(ModelError, match="neither head_dim nor hidden_size"):
        read(head_dim=None, hidden_size=None)


def test_gemma_4_is_refused_where_its_layers_differ_and_taken_where_they_do_not() -> None:
    with pytest.raises(ModelError, match=r"^head_dim differs from layer to layer \(16, 512\)"):
        ModelGeometry.from_config(gemma4())
    assert ModelGeometry.from_config(gemma4(global_head_dim=16)) == ModelGeometry(2, 4, 2, 16, tuple(KINDS))
    with pytest.raises(ModelError, match=r"^num_key_value_heads differs from layer to layer \(2, 1\)"):
        ModelGeometry.from_config(gemma4(global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_attention_heads": 2}, r"num_attention_heads differs from layer to layer \(4, 2\)"),
        ({"num_key_value_heads": 1}, r"num_key_value_heads differs from layer to layer \(2, 1\)"),
        ({"skip": ["self_attn"]}, "layers 1 have no attention over the text"),
        ({"skip": ["mlp"]}, None),
        ({"intermediate_size": 8}, None),
    ],
)
def test_layers_of_their_own_matter_where_heads_or_attention_differ(changes: dict[str, Any], words: str | None) -> None:
    config = Qwen3Config(**PLAIN, intermediate_size=32, per_layer_config={1: changes})
    plain = SimpleNamespace(**PLAIN, per_layer_config={"1": changes})
    for found in (config, plain):
        if words is None:
            assert ModelGeometry.from_config(found).shape == (2, 4)
        else:
            with pytest.raises(ModelError, match=words):
                ModelGeometry.from_config(found)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"per_layer_config": {"0": {"head_dim": 16}, "1": {"head_dim": 32}}}, r"head_dim differs .*\(16, 32\)"),
        ({"global_head_dim": 512}, r"head_dim \(global_head_dim\) differs from layer to layer \(16, 512\)"),
        ({"num_global_key_value_heads": 1}, r"num_key_value_heads \(num_global_key_value_heads\) differs"),
        ({"swa_num_attention_heads": 8}, r"num_attention_heads \(swa_num_attention_heads\) differs"),
        ({"num_key_value_heads": [2, 4]}, r"num_key_value_heads differs from layer to layer \(2, 4\)"),
        ({"num_query_heads": [12, 16, 12, 20, 24]}, r"num_query_heads differs from layer to layer \(12, 16, 20, 24\)"),
        ({"num_attention_heads_per_layer": [4, 2]}, "num_attention_heads_per_layer differs"),
        ({"block_configs": [{"attention": {"n_heads_in_group": n}} for n in (4, 8)]}, "n_heads_in_group differs"),
        ({"block_configs": [{"attention": {"no_op": True}}]}, "layers 0 have no attention over the text"),
        ({"cross_attention_layers": [1]}, "layers 1 have no attention over the text"),
    ],
)
def test_tables_of_other_families_are_refused_by_name(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=f"^{words}.*; headprobe needs the same heads in all layers"):
        read(**changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"per_layer_config": {"0": {"head_dim": 16}, "1": {"head_dim": 16}}},
        {"global_head_dim": 16},
        {"num_attention_heads_per_layer": [4, 4]},
        {"block_configs": [{"attention": {"n_heads_in_group": 2, "no_op": False}}]},
        {"cross_attention_layers": []},
        {"global_head_dim": None, "per_layer_config": {}},
    ],
)
def test_tables_that_say_the_same_for_all_layers_are_taken(changes: dict[str, Any]) -> None:
    assert read(**changes) == ModelGeometry(2, 4, 2, 16, ("full_attention",) * 2)


def test_the_text_part_of_a_vision_model_with_layers_for_images_is_refused() -> None:
    with pytest.raises(ModelError, match=r"^layers 3, 8, 13, 18, ... have no attention over the text"):
        ModelGeometry.from_config(MllamaConfig().get_text_config(decoder=True))


def test_sliding_layers_with_more_kv_heads_by_the_models_code_are_taken() -> None:
    config = AutoConfig.for_model("mimo_v2_flash", **PLAIN, v_head_dim=8)
    assert ModelGeometry.from_config(config).num_key_value_heads == 2

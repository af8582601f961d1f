"""A tiny random model of every causal decoder that transformers knows, in float32, with weights large enough to differ.

All get one set of sizes; what a family calls otherwise, or wants besides, stands in `CHANGES`.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from typing import Any

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

VOCABULARY = 128
WINDOW = 16  # of sliding windows, and the size of chunks; prompts are longer
SCALE = 0.2  # standard deviation of weights

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "attention_dropout": 0.0,
    "num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1,
    "moe_intermediate_size": 24, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
    "kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 12,
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
MLA = {"num_key_value_heads": 4, "head_dim": None}
GEMMA4 = {"global_head_dim": 16, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCABULARY}
CHANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v2", "deepseek_v3", "glm4_moe_lite", "minicpm3", "youtu", "sarvam_mla"), MLA),
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "mimo_v2_flash": {"v_head_dim": 6},
    **{kind: {"use_sliding_window": True} for kind in ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3")},
    "gpt_bigcode": {"num_key_value_heads": None},
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "attn_pdrop": 0.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 32},
    },
    "dots3_note_text": {"num_key_value_heads": 4},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["full_attention"] * 2},
    "longcat_flash": {"num_key_value_heads": 4},
    "moshi": {"sliding_window": 250},
    "dory": {"num_hidden_layers": 3, "n_input_layers": 1, "n_output_layers": 1, "layer_types": ["full_attention"] * 3},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
            for kind in ("full_attention", "sliding_attention")
        },
    },
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "laurel_rank": 4,
        "vocab_size_per_layer_input": VOCABULARY,
        "activation_sparsity_pattern": [0.0] * 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": GEMMA4,
    "gemma4_unified_text": GEMMA4,
    "gemma3": {"image_token_index": 3},
    "llama4_text": {"attention_chunk_size": WINDOW, "layer_types": ["chunked_attention", "full_attention"]},
    "recurrent_gemma": {"num_hidden_layers": 3, "sliding_window": WINDOW},
    "doge": {"keep_window_size": 12},
    "phi4_multimodal": {"vision_config": SMALL, "audio_config": {**SMALL, "num_blocks": 1, "ext_pw_out_channel": 32}},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}

SKIPPED = {
    "dots3_note": "multimodal: see its text model, dots3_note_text",
    "gemma3n": "multimodal, and its pictures need timm: see its text model, gemma3n_text",
    "gemma4_assistant": "a draft model, which runs on another model's cache alone",
    "gemma4_unified_assistant": "a draft model, which runs on another model's cache alone",
}


def families(only: Collection[str] = ()) -> Iterator[tuple[str, Any, Any]]:
    """Model type, config class and model class of each decoder with transformers' attention interface, by name.

    `only`: the model types to look at; others are not even imported.
    """
    wanted = [kind for kind in MODEL_FOR_CAUSAL_LM_MAPPING if not only or kind.model_type in only]
    with warnings.catch_warnings():  # some modelling code is deprecated as soon as it is imported
        warnings.simplefilter("ignore")
        classes_of = {config_class: MODEL_FOR_CAUSAL_LM_MAPPING[config_class] for config_class in wanted}
    found = {}
    for config_class, classes in classes_of.items():
        model_class: Any = classes
        if isinstance(classes, list | tuple):
            model_class = classes[0]
        if getattr(model_class, "_supports_attention_backend", False):
            found[config_class.model_type] = config_class, model_class
    for kind in sorted(found):
        yield kind, *found[kind]


def tiny_configs(kind: str, config_class: Any) -> Iterator[tuple[str, Any]]:
    """A family's tiny configs, with what each is of: one, or two where all layers may have a sliding window or none."""
    plain = config_class()
    if "text_config" in config_class.sub_configs:
        yield kind, _multimodal(kind, config_class)
        return
    slides = _has(plain, "sliding_window") and "sliding_window" not in CHANGES.get(kind, {})
    kinds = set(getattr(plain, "layer_types", None) or ())
    if slides and _has(plain, "layer_types") and kinds <= {"sliding_attention", "full_attention"}:
        yield (
            kind,
            _config(kind, config_class, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]),
        )
        return
    yield kind, _config(kind, config_class, sliding_window=WINDOW if kinds else None)
    if slides and not kinds:
        yield f"{kind} (sliding window)", _config(kind, config_class, sliding_window=WINDOW)


def _config(kind: str, config_class: Any, **more: Any) -> Any:
    plain = config_class()
    given = {name: value for name, value in SIZES.items() if _has(plain, name)} | more | CHANGES.get(kind, {})
    dropped = [name for name, value in given.items() if value is None and name != "sliding_window"]
    config = config_class(**{name: value for name, value in given.items() if name not in dropped})
    if getattr(config, "is_decoder", None) is False:
        config.is_decoder = True
    return config


def _multimodal(kind: str, config_class: Any) -> Any:
    """A config whose text part is tiny, and whose other parts are as small as they come."""
    text_class = type(config_class().text_config)
    (_, text), *_ = tiny_configs(text_class.model_type, text_class)
    others = {}
    for name in config_class.sub_configs:
        part = getattr(config_class(), name)
        if name != "text_config" and part is not None:
            others[name] = {"model_type": part.model_type, **{n: v for n, v in SMALL.items() if _has(part, n)}}
    return config_class(text_config=text.to_dict(), **others, **CHANGES.get(kind, {}))


def _has(config: Any, name: str) -> bool:
    try:
        return hasattr(config, name)
    except Exception:  # an attribute that differs from layer to layer
        return True


def tiny_model(config: Any, model_class: Any) -> Any:
    """A random model with eager attention; the same every time."""
    text = config.get_text_config(decoder=True)
    if model_class.config_class is type(text):  # as transformers does for the text model of a multimodal config
        config = text
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class._from_config(config, attn_implementation="eager", dtype=torch.float32)
        for parameter in model.parameters():
            noise = torch.randn_like(parameter)
            parameter.data = noise * SCALE if parameter.ndim > 1 else parameter.data + 0.1 * noise
    model.generation_config.eos_token_id = None
    return model.eval().requires_grad_(False)

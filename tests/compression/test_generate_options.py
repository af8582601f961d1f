"""Every option of `generate()`: the same tokens as on transformers' own cache where nothing is evicted, or refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    MaxLengthCriteria,
    MinLengthLogitsProcessor,
    StoppingCriteriaList,
)

from headprobe.compression.session import compress
from headprobe.errors import OptionError
from headprobe.models.releases import CACHE_NAMES
from tests.compression.test_decoding import small_llama, tokens

PLAIN: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
SAMPLED: dict[str, Any] = {"do_sample": True, "temperature": 2.0}


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


def told(result: Any) -> list[Any]:
    """All that came back but the cache."""
    if isinstance(result, torch.Tensor):
        return [result]
    parts = [result.sequences, *(result.scores or ()), *(result.logits or ())]
    return parts + [state for step in result.hidden_states or () for state in step]


SERVED: list[dict[str, Any]] = [
    {},
    SAMPLED,
    {**SAMPLED, "top_k": 5, "top_p": 0.9},
    {**SAMPLED, "min_p": 0.1, "typical_p": 0.9},
    {**SAMPLED, "top_h": 0.4},
    {**SAMPLED, "watermarking_config": {"bias": 2.5, "seeding_scheme": "lefthash"}},
    {**SAMPLED, "epsilon_cutoff": 1e-3, "eta_cutoff": 1e-3},
    {**SAMPLED, "num_return_sequences": 3},
    {"num_beams": 1, "use_cache": True, "guidance_scale": 1, "penalty_alpha": 0.0, "token_healing": False},
    {"num_beams": None, "penalty_alpha": None, "prompt_lookup_num_tokens": None, "output_attentions": False}
    | {"num_beams": 1},
    {"repetition_penalty": 1.5},
    {"encoder_repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 2},
    {"bad_words_ids": [[5], [7, 8]]},
    {"sequence_bias": [[[5], 3.0]]},
    {"suppress_tokens": [5, 6], "begin_suppress_tokens": [13]},
    {"forced_bos_token_id": 5, "forced_eos_token_id": 7},
    {"min_new_tokens": 4, "eos_token_id": 91},
    {"max_new_tokens": None, "max_length": 55},
    {"exponential_decay_length_penalty": (2, 1.5), "eos_token_id": 91},
    {"renormalize_logits": True, "remove_invalid_values": True},
    {"logits_processor": LogitsProcessorList([MinLengthLogitsProcessor(60, 91)])},
    {"stopping_criteria": StoppingCriteriaList([MaxLengthCriteria(53)])},
    {"prefix_allowed_tokens_fn": lambda batch, ids: [5, 6, 7 + len(ids) % 3]},
    {"return_dict_in_generate": True, "output_scores": True, "output_logits": True, "output_hidden_states": True},
    {"position_ids": torch.arange(7, 57)[None]},
    {"attention_mask": torch.tensor([[0] * 9 + [1] * 41])},
    {"attention_mask": torch.ones(1, 50, dtype=torch.bool)},
    {"logits_to_keep": 0},
    {"disable_compile": True, "max_time": 1000.0},
    {"negative_prompt_ids": None, "synced_gpus": False, "cache_implementation": "hybrid"},
    {"generation_config": GenerationConfig(do_sample=True, top_k=4), "max_new_tokens": 5},
]


@pytest.mark.parametrize("options", SERVED, ids=lambda options: "-".join(options) or "plain")
@pytest.mark.parametrize("chunk", [None, 16])
def test_it_equals_the_models_own_generate(llama: Any, options: dict[str, Any], chunk: int | None) -> None:
    def made(generate: Any) -> Any:
        torch.manual_seed(4)
        given = options if "generation_config" in options else {**PLAIN, **options}
        return told(generate(tokens(50), **given))

    with compress(llama, "full", prefill_chunk=chunk) as session:
        mine = made(session.generate)
    for own, given in zip(made(llama.generate), mine, strict=True):
        torch.testing.assert_close(given, own, atol=1e-5, rtol=1e-4)


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"num_beams": 4}, "beam search with 4 beams"),
    ({"num_beam_groups": 2}, "num_beam_groups=2"),
    ({"constraints": ["x"]}, "constraints="),
    ({"force_words_ids": [[5]]}, "force_words_ids="),
    ({"penalty_alpha": 0.6, "top_k": 4}, "penalty_alpha=0.6"),
    ({"dola_layers": "high"}, "dola_layers='high'"),
    ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens=3"),
    ({"assistant_early_exit": 1}, "assistant_early_exit=1"),
    ({"assistant_model": "model"}, "assistant_model="),
    ({"speculation_type": "dflash"}, "speculation_type='dflash'"),
    ({"use_mtp": True}, "use_mtp=True"),
    ({"is_assistant": True}, "is_assistant=True"),
    ({"custom_generate": "owner/name"}, "custom_generate='owner/name'"),
    ({"custom_generate": print}, "custom_generate="),
    ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
    ({"negative_prompt_ids": torch.ones(1, 3).long()}, "negative_prompt_ids="),
    ({"negative_prompt_attention_mask": torch.ones(1, 3)}, "negative_prompt_attention_mask="),
    ({"token_healing": True}, "token_healing=True"),
    ({"synced_gpus": True}, "synced_gpus=True"),
    ({"output_attentions": True}, "output_attentions=True"),
    ({"prefill_chunk_size": 8}, "prefill_chunk_size=8.*use prefill_chunk of compress"),
    ({"cache_implementation": "static"}, "cache_implementation='static'"),
    ({"cache_implementation": "quantized"}, "cache_implementation='quantized'"),
    ({"cache_implementation": "paged"}, "cache_implementation='paged'"),
    ({"past_key_values": DynamicCache()}, "past_key_values="),
    ({"cache": DynamicCache()}, "cache="),
    ({"cache_params": DynamicCache()}, "cache_params="),
    ({"use_cache": False}, "use_cache=False"),
    ({"use_cache": None}, "use_cache=False"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED, ids=lambda value: value if isinstance(value, str) else "")
def test_it_is_refused_by_name(llama: Any, options: dict[str, Any], message: str) -> None:
    with compress(llama, "snapkv", budget=20) as session:
        with pytest.raises(OptionError, match=message):
            session.generate(tokens(50), **{**PLAIN, **options})
        assert session.cache is None


BY_CONFIG = [
    {"use_cache": False},
    {"num_beams": 4},
    {"penalty_alpha": 0.6},
    {"prompt_lookup_num_tokens": 3},
    {"guidance_scale": 1.5},
    {"token_healing": True},
    {"cache_implementation": "static"},
    {"prefill_chunk_size": 8},
]


@pytest.mark.parametrize("settings", BY_CONFIG, ids=lambda settings: next(iter(settings)))
def test_it_is_refused_in_a_config_and_in_the_models_own(
    llama: Any, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, value = next(iter(settings.items()))
    config, wanted = GenerationConfig(), "beam search" if name == "num_beams" else name
    setattr(config, name, value)
    with compress(llama, "snapkv", budget=20) as session:
        with pytest.raises(OptionError, match=wanted):
            session.generate(tokens(50), generation_config=config)
        with pytest.raises(OptionError, match=wanted):
            session.generate(tokens(50), config)
        monkeypatch.setattr(llama.generation_config, name, value)
        with pytest.raises(OptionError, match=wanted):
            session.generate(tokens(50), **PLAIN)
        off = {"num_beams": 1, "use_cache": True}.get(name)
        assert session.generate(tokens(50), **PLAIN, **{name: off}).shape == (1, 58)


def test_no_argument_of_generate_is_unknown_here(llama: Any) -> None:
    """An argument that a new release of transformers adds must be tried, and named in one of the lists."""
    arguments = set(inspect.signature(inspect.unwrap(GenerationMixin.generate)).parameters)
    tried = {name for options in SERVED for name in options} | {name for options, _ in REFUSED for name in options}
    elsewhere = {"self", "kwargs", "inputs", "streamer"}  # test_conversation, test_session
    assert arguments <= tried | elsewhere
    assert set(CACHE_NAMES) <= tried


OF_OTHER_MODES = {  # looked at in beam search, by assistants, encoders and caches that are refused, or not at all
    "early_stopping", "length_penalty", "diversity_penalty", "low_memory", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "max_matching_ngram_size", "assistant_confidence_threshold",
    "assistant_lookbehind", "target_lookbehind", "assistant_ensemble_weight", "decoder_start_token_id",
    "encoder_no_repeat_ngram_size", "bos_token_id", "cache_config", "max_cache_len", "compile_config",
    "continuous_batching_config", "min_length", "stop_strings", "transformers_version",
}  # fmt: skip


def test_no_setting_of_a_config_is_unknown_here() -> None:
    """A setting that a new release of transformers adds must be tried, and named in one of the lists."""
    settings = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    tried = {*PLAIN, *(name for options in SERVED for name in options), *(name for o, _ in REFUSED for name in o)}
    assert settings - tried - OF_OTHER_MODES == set()

"""Small random models of many families, with a small tokenizer, written to a folder as transformers does.

    folder = build_tiny_model("mistral", tmp_path)          # then load_model(str(folder))

All have 2 layers (gpt-oss and the Gemmas: one sliding, one full), 4 query heads, 2 key/value heads where the family
groups them, hidden size 32, a vocabulary of `VOCAB_SIZE` and a window of `WINDOW` tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

WINDOW = 1024
VOCAB_SIZE = 384
SLIDING_WINDOW = 16
BOS, EOS, PAD = "<s>", "</s>", "<pad>"
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
_TEXT = [
    "The favourite thing of Anna is the red lamp. The favourite thing of Tom is the old boat.",
    "Anna is 41 years old. Tom is 17 years old. What is the favourite thing of the older one?",
    "Text: The harbour lay still in the morning, and nobody had come to mend the nets.",
    "Question: Where is the key? Answer: The key is under the third stone beside the gate.",
]


def _sizes(**changes: Any) -> dict[str, Any]:
    sizes: dict[str, Any] = {
        "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": WINDOW,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2,
    }  # fmt: skip
    return {**sizes, **changes}


def _llama() -> Any:
    from transformers import LlamaConfig

    return LlamaConfig(**_sizes())


def _qwen3() -> Any:
    from transformers import Qwen3Config

    return Qwen3Config(**_sizes(head_dim=16, tie_word_embeddings=True))


def _mistral() -> Any:
    from transformers import MistralConfig

    return MistralConfig(**_sizes(sliding_window=SLIDING_WINDOW))


def _gemma3() -> Any:
    from transformers import Gemma3TextConfig

    kinds = ["sliding_attention", "full_attention"]
    return Gemma3TextConfig(
        **_sizes(head_dim=8, sliding_window=SLIDING_WINDOW, layer_types=kinds, query_pre_attn_scalar=8)
    )


def _gemma2() -> Any:
    from transformers import Gemma2Config

    kinds = ["sliding_attention", "full_attention"]
    return Gemma2Config(
        **_sizes(head_dim=8, sliding_window=SLIDING_WINDOW, layer_types=kinds, query_pre_attn_scalar=8),
        attn_logit_softcapping=2.0,
    )


def _phi3() -> Any:
    from transformers import Phi3Config

    return Phi3Config(**_sizes(original_max_position_embeddings=WINDOW))


def _olmo2() -> Any:
    from transformers import Olmo2Config

    return Olmo2Config(**_sizes(num_key_value_heads=4))


def _gpt_oss() -> Any:
    from transformers import GptOssConfig

    return GptOssConfig(
        **_sizes(
            head_dim=8, sliding_window=SLIDING_WINDOW, num_local_experts=4, num_experts_per_tok=2,
            layer_types=["sliding_attention", "full_attention"],
            rope_parameters={"rope_type": "default", "rope_theta": 1e4},
        )
    )  # fmt: skip


TINY_MODELS: dict[str, Callable[[], Any]] = {
    "llama": _llama,
    "qwen3": _qwen3,
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "phi3": _phi3,
    "olmo2": _olmo2,
    "gpt-oss": _gpt_oss,
}


def tiny_config(family: str) -> Any:
    """The transformers config of a family's tiny model."""
    return TINY_MODELS[family]()


def tiny_model(family: str, seed: int = 0, attn_implementation: str | None = None) -> Any:
    """A random model of `family` in float32 and evaluation mode; the same `seed` gives the same weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(family), attn_implementation=attn_implementation)
        _give_sinks_values(model)
    return model.float().eval()


def _give_sinks_values(model: Any) -> None:
    """gpt-oss has one learnt sink a head; give them random numbers, so that leaving them out is seen."""
    import torch

    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(parameter)


def tiny_tokenizer(chat_template: str | None = None) -> Any:
    """A byte-level BPE tokenizer of at most `VOCAB_SIZE` entries that reads any text and puts BOS first."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(
        _TEXT * 4,
        trainers.BpeTrainer(
            vocab_size=VOCAB_SIZE, special_tokens=[PAD, BOS, EOS], initial_alphabet=alphabet, show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, backend.token_to_id(BOS))]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=PAD,
        model_max_length=WINDOW, clean_up_tokenization_spaces=False,
    )  # fmt: skip
    tokenizer.chat_template = chat_template
    return tokenizer


def build_tiny_model(family: str, parent: Path, *, seed: int = 0, chat_template: str | None = None) -> Path:
    """Save a tiny model of `family` with its tokenizer under `parent` and return the folder (named for the family)."""
    folder = parent / family
    tiny_model(family, seed).save_pretrained(folder)
    tiny_tokenizer(chat_template).save_pretrained(folder)
    return folder

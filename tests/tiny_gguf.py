"""A tiny Llama as a GGUF file, written with the `gguf` package as llama.cpp's converter does.

pytest.importorskip("gguf")
path = write_tiny_gguf(tmp_path / "tiny.gguf")          # the weights of `tiny_model("llama")`
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.tiny_models import BOS, EOS, PAD, WINDOW, tiny_model, tiny_tokenizer

GROUPS = {"q_proj": 4, "k_proj": 2}  # whose rows llama.cpp keeps in another order, by number of heads
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
LAYER_NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def write_tiny_gguf(
    path: Path,
    *,
    quantized: bool = False,
    architecture: str = "llama",
    chat_template: str | None = None,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write the tiny Llama, in float32 or with its matrices in Q8_0; `metadata` are more entries, numbers or texts."""
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    config = tiny_model("llama").config
    writer.add_name("tiny")
    writer.add_context_length(WINDOW)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    _add_tokenizer(writer, config.vocab_size, chat_template)
    for name, value in (metadata or {}).items():
        writer.add_string(name, value) if isinstance(value, str) else writer.add_uint32(name, value)
    for name, weight in tiny_model("llama").state_dict().items():
        rows = _reordered(name, weight.numpy())
        kind = gguf.GGMLQuantizationType.Q8_0
        if quantized and rows.ndim == 2 and rows.shape[1] % 32 == 0:
            writer.add_tensor(_name(name), gguf.quantize(rows, kind), raw_dtype=kind)
        else:
            writer.add_tensor(_name(name), rows)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_tokenizer(writer: Any, vocab_size: int, chat_template: str | None) -> None:
    import gguf

    model = tiny_tokenizer()
    vocabulary = sorted(model.get_vocab().items(), key=lambda pair: pair[1])
    tokens = [token for token, _ in vocabulary]
    tokens += [f"[unused{i}]" for i in range(vocab_size - len(tokens))]
    special = {BOS, EOS, PAD}
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    merges = [" ".join(pair) for pair in _merges(model)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index(BOS))
    writer.add_eos_token_id(tokens.index(EOS))
    writer.add_pad_token_id(tokens.index(PAD))
    writer.add_add_bos_token(True)
    if chat_template is not None:
        writer.add_chat_template(chat_template)


def _merges(tokenizer: Any) -> list[tuple[str, str]]:
    import json

    return [tuple(pair) for pair in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


def _name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{LAYER_NAMES[rest.removesuffix('.weight')]}.weight"


def _reordered(name: str, weight: Any) -> Any:
    """Rows of queries and keys as llama.cpp wants them: both halves of a head's rotary pairs side by side."""
    heads = next((count for part, count in GROUPS.items() if f".{part}." in name), None)
    if heads is None:
        return weight
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(weight.shape)

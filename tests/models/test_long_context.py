"""A window of 131,072 tokens, filled: a prompt of that length is scored and compressed, in chunks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from headprobe.compression.generation import generate
from headprobe.compression.session import compress
from headprobe.models.loading import LoadedModel, load_model
from headprobe.profiling.job import ScoreOptions
from headprobe.profiling.run import score
from headprobe.profiling.shards import Shard
from tests.tiny_models import VOCAB_SIZE, tiny_tokenizer

WINDOW = 131_072
BUDGET = 256
pytestmark = pytest.mark.slow  # ten minutes on a slow core


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A random Llama of four layers, two KV heads each."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("long"), tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=WINDOW, rope_theta=500_000.0, bos_token_id=1, eos_token_id=2,
        pad_token_id=0, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.model_max_length = WINDOW
    tokenizer.save_pretrained(folder)
    return load_model(str(folder), device="cpu", dtype="float32")


def test_a_trial_of_128k_is_scored_in_chunks(long: LoadedModel, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "lengths": (WINDOW,),
        "depths": 1,
        "limit": 1,
        "shard": Shard(1, 1),
    }  # the gate would fail
    score(long, ScoreOptions(**options, prefill_chunk=8192), output=tmp_path / "a.json")
    header, record = map(json.loads, (tmp_path / "a.shard-1-of-1.journal").read_text().splitlines())
    assert header["plan"]["plan"]["lengths"] == [WINDOW]
    table = torch.tensor(record["scores"]["r2"])
    assert table.shape == (4, 4)
    assert bool((table > 0).any())
    assert bool(((table >= 0) & (table <= 1)).all())


def test_a_prompt_of_128k_is_compressed_alike_whatever_the_chunk(long: LoadedModel) -> None:
    prompt = torch.randint(3, VOCAB_SIZE, (WINDOW - 8,), generator=torch.Generator().manual_seed(1)).tolist()
    answers, kept = [], []
    for chunk in (8192, 32_768):
        with compress(long.model, "snapkv", budget=BUDGET, prefill_chunk=chunk) as session:
            answers.append(generate(session, prompt, max_new_tokens=4).tokens)
            kept.append([store.lengths.tolist() for store in session.cache.stores])
    assert answers[0] == answers[1]
    assert kept[0] == kept[1] == [[BUDGET + 3] * 2] * 4  # the last of four tokens is not read

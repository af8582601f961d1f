"""Decoding on quantized caches against the plain oracle: dense, masked attention over numbers quantized one by one."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from headprobe.compression.generation import AnswerOptions, generate, generate_batch, join
from headprobe.compression.kv_cache_dtypes import FORMATS
from headprobe.compression.many_answers import Asked, answer, answers, cache_nbytes
from headprobe.compression.policies import POLICIES, make_policy
from headprobe.compression.read_once import read_once
from headprobe.compression.session import compress, make_plan
from headprobe.errors import NonFiniteError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.releases import with_cache
from tests.compression.oracle import oracle_attention
from tests.compression.plain_quantization import plain_nbytes, plainly_held
from tests.compression.scores import random_scores
from tests.compression.test_decoding import check_positions, conversation, logits_of, small_llama, tokens
from tests.tiny_models import tiny_model

DTYPES = tuple(FORMATS)


PROMPT, BUDGET = 50, 14


def one_layer(heads: int = 4, groups: int = 2, head_dim: int = 48) -> Any:
    """A model whose keys and values follow from the tokens alone: the smallest difference before a second layer would
    tip a number over the edge between two codes now and then."""
    model = small_llama(heads, groups, head_dim)
    del model.model.layers[1:]
    model.config.num_hidden_layers = 1
    return model


def compare(model: Any, name: str, kv_cache_dtype: str, off: float = 1e-5) -> None:
    """Logits of both over single tokens and a second turn; for each head the very same positions."""
    geometry = ModelGeometry.from_config(model.config)
    policy = make_policy(name)
    scores = random_scores(geometry) if policy.needs_scores else None
    turns = conversation(PROMPT, 24)
    given = None if policy.keeps_all else BUDGET
    with compress(
        model, policy, budget=given, scores=scores, keep_positions=True, slack=7, kv_cache_dtype=kv_cache_dtype
    ) as session:
        fast = logits_of(model, session.new_cache(), turns)
    held = partial(plainly_held, kv_cache_dtype=kv_cache_dtype)
    with oracle_attention(model, session.plan, geometry.full_attention_layers, held) as state:
        slow = logits_of(model, DynamicCache(config=model.config), turns)
    torch.testing.assert_close(fast, slow, atol=off, rtol=1e-4)
    check_positions(session, state, geometry, PROMPT)
    assert session.cache is not None
    _, value_width = session.cache.stores[0].widths
    entry = plain_nbytes(geometry.head_dim, kv_cache_dtype) + plain_nbytes(value_width, kv_cache_dtype)
    room = sum(int(store.capacities.sum()) for store in session.cache.stores)
    others = sum(layer.nbytes for layer in session.cache.layers if layer not in session.cache.ragged_layers)
    assert session.cache.nbytes == room * entry + others


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("name", POLICIES)
def test_decoding_equals_dense_attention_over_quantized_numbers(name: str, kv_cache_dtype: str) -> None:
    compare(one_layer(), name, kv_cache_dtype)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "gpt-oss"])
def test_families_with_caps_windows_and_sinks(family: str) -> None:
    compare(tiny_model(family), "ada-snapkv", "int4", off=5e-3)


def test_quantizing_changes_logits_a_little_and_a_budget_of_all_changes_no_more() -> None:
    model, turns = small_llama(4, 2, head_dim=64), conversation(40, 6)
    exact = logits_of(model, DynamicCache(config=model.config), turns)
    off = {}
    for kv_cache_dtype in ("auto", *DTYPES):
        with compress(model, "full", kv_cache_dtype=kv_cache_dtype) as session:
            given = logits_of(model, session.new_cache(), turns)
        off[kv_cache_dtype] = float((given - exact).abs().max())
        assert torch.equal(given[0], exact[0])  # the prompt itself is read as it is
    assert off["auto"] < 1e-5 < off["int8"] < off["int4"] < 5.0


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_a_batch_of_padded_prompts_equals_its_sequences_alone(name: str, kv_cache_dtype: str) -> None:
    model = small_llama(4, 2)
    prompts = [tokens(30, seed=3), tokens(41, seed=4)]
    ids = torch.cat([torch.nn.functional.pad(prompt, (41 - prompt.shape[1], 0)) for prompt in prompts])
    mask = torch.stack([torch.arange(41) >= 41 - prompt.shape[1] for prompt in prompts]).long()
    with compress(model, name, budget=12, kv_cache_dtype=kv_cache_dtype) as session:
        options = {"max_new_tokens": 8, "do_sample": False, "min_new_tokens": 8, "pad_token_id": 0}
        together = session.generate(ids, attention_mask=mask, **options)[:, 41:]
        for prompt, wanted in zip(prompts, together, strict=True):
            session.reset()
            assert torch.equal(session.generate(prompt, **options)[0, prompt.shape[1] :], wanted)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("name", ["snapkv", "vatp-h2o"])
def test_prompts_read_one_by_one_and_joined_give_what_each_gives_alone(name: str, kv_cache_dtype: str) -> None:
    model, prompts = small_llama(4, 2), [tokens(n, seed=n)[0].tolist() for n in (30, 41)]
    with compress(model, name, budget=12, kv_cache_dtype=kv_cache_dtype) as session:
        together = generate_batch(session, prompts, max_new_tokens=8)
        alone = [generate(session, prompt, max_new_tokens=8) for prompt in prompts]
    assert together.tokens == tuple(given.tokens for given in alone)
    assert together.kv_bytes == sum(given.kv_bytes for given in alone)


def test_a_copied_cache_goes_on_as_the_first_does() -> None:
    model = small_llama(4, 2)
    with torch.inference_mode(), compress(model, "h2o", budget=12, kv_cache_dtype="int4") as session:
        model(input_ids=tokens(30), **with_cache(model, session.new_cache()))
        copied = copy.deepcopy(session.cache)
        logits = [model(input_ids=tokens(4, seed=8), **with_cache(model, c)).logits for c in (session.cache, copied)]
    assert torch.equal(*logits)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("name", ["full", "headkv-r2", "h2o", "razor"])
def test_one_reading_serves_caches_of_every_number_format(name: str, kv_cache_dtype: str) -> None:
    model, prompt = small_llama(4, 2, head_dim=64), tokens(60)[0].tolist()
    geometry = ModelGeometry.from_config(model.config)
    policy = make_policy(name)
    budget = None if policy.keeps_all else 16
    scores = random_scores(geometry) if policy.needs_scores else None
    with compress(model, policy, budget=budget, scores=scores, kv_cache_dtype=kv_cache_dtype) as session:
        alone = generate(session, prompt, max_new_tokens=8)
    plan = make_plan(model, policy, budget=budget, scores=scores)
    with read_once(model, [policy]) as reader:
        reading = reader.read(prompt)
        asked = Asked(AnswerOptions(max_new_tokens=8), kv_cache_dtype=kv_cache_dtype)
        (given,), cache = answer(reading, plan, asked)
        assert cache_nbytes(reading, plan, asked.slack, kv_cache_dtype) == alone.kv_bytes
        batches = list(answers(reading, [plan, plan], asked, most_bytes=2**40))
    assert (given.tokens, given.kv_bytes, given.kv_scale_bytes) == (alone.tokens, alone.kv_bytes, alone.kv_scale_bytes)
    assert {each.generations[0].tokens for each in batches} == {alone.tokens}
    assert cache.kv_cache_dtype == given.kv_cache_dtype == kv_cache_dtype
    assert cache.scale_nbytes == given.kv_scale_bytes > 0


def test_bytes_of_an_answer_are_those_of_entries_and_scales() -> None:
    model, prompt = small_llama(4, 2, head_dim=64), tokens(100)[0].tolist()
    for kv_cache_dtype, entry, scales in (("auto", 512, 0), ("int8", 2 * 68, 2 * 4), ("int4", 2 * 40, 2 * 8)):
        with compress(model, "snapkv", budget=20, slack=5, kv_cache_dtype=kv_cache_dtype) as session:
            given = generate(session, prompt, max_new_tokens=3)
        entries = 2 * 2 * (20 + 5)  # layers x KV heads x (entries and slack)
        assert (given.kv_bytes, given.kv_scale_bytes) == (entries * entry, entries * scales)
        assert given.full_kv_bytes == 2 * 2 * 100 * 512  # as the model computes them, whatever is held


def test_caches_of_different_number_formats_are_not_joined() -> None:
    model, caches = small_llama(4, 2), []
    for kv_cache_dtype in ("int8", "int4"):
        with torch.inference_mode(), compress(model, "snapkv", budget=12, kv_cache_dtype=kv_cache_dtype) as session:
            model(input_ids=tokens(30), **with_cache(model, session.new_cache()))
            caches.append(session.cache)
    with pytest.raises(OptionError, match="cache 1 has another policy, budget or model"):
        join(caches)


@pytest.mark.parametrize("kernel", ["triton", "flash2", "flash4", "torch-varlen"])
def test_kernels_that_read_plain_numbers_alone_are_refused_by_name(kernel: str) -> None:
    refused = pytest.raises(OptionError, match=f"attention kernel {kernel} reads no int8 entries: take auto or torch")
    with refused, compress(small_llama(4, 2), "snapkv", budget=12, attention=kernel, kv_cache_dtype="int8"):
        pass


def test_unknown_number_formats_are_refused() -> None:
    refused = pytest.raises(OptionError, match="kv_cache_dtype is 'int2', need one of auto, int8, int4")
    with refused, compress(small_llama(4, 2), "snapkv", budget=12, kv_cache_dtype="int2"):
        pass


def test_broken_numbers_in_the_cache_are_still_noticed() -> None:
    model = small_llama(4, 2)
    with torch.inference_mode(), compress(model, "snapkv", budget=12, kv_cache_dtype="int8") as session:
        model(input_ids=tokens(30), **with_cache(model, session.new_cache()))
        assert session.cache is not None
        for layer in session.cache.ragged_layers:
            assert layer.store is not None
            layer.store.append(torch.full((1, 2, 1, 8), torch.inf), torch.full((1, 2, 1, 8), torch.nan))
        ids = torch.cat([tokens(30), tokens(2)], 1)
        with pytest.raises(NonFiniteError):
            session.generate(ids, max_new_tokens=2, do_sample=False)

"""Compressed decoding against the plain oracle: which entries stay, and what the model says on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from headprobe.compression.decoding import most_likely
from headprobe.compression.policies import POLICIES, CompressionPlan, Policy, make_policy
from headprobe.compression.session import CompressionSession, compress
from headprobe.geometry import ModelGeometry
from headprobe.models.releases import with_cache
from tests.compression.oracle import oracle_attention
from tests.compression.scores import random_scores
from tests.tiny_models import tiny_model

DECODED = 64


def small_llama(heads: int, groups: int, head_dim: int = 8, seed: int = 0) -> Any:
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=groups, head_dim=head_dim, max_position_embeddings=1024, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float().eval()


def tokens(count: int, seed: int = 1, vocabulary: int = 90) -> torch.Tensor:
    return torch.randint(3, vocabulary, (1, count), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def logits_of(model: Any, cache: Any, turns: list[torch.Tensor]) -> torch.Tensor:
    """All logits of the turns behind the first, which is the prompt: of that only the last ones count."""
    given = [model(input_ids=turn, **with_cache(model, cache), use_cache=True).logits[0] for turn in turns]
    return torch.cat([given[0][-1:], *given[1:]])


def conversation(prompt: int, decoded: int = DECODED) -> list[torch.Tensor]:
    """A prompt, single tokens, a second turn of five tokens at once, and single ones again."""
    single = [tokens(1, seed=100 + i) for i in range(decoded)]
    return [tokens(prompt), *single, tokens(5, seed=7), *[tokens(1, seed=300 + i) for i in range(4)]]


def compare(model: Any, policy: Policy, budget: int | None, prompt: int, decoded: int = DECODED) -> CompressionSession:
    """Logits of both; then, for each head, the very same positions."""
    geometry = ModelGeometry.from_config(model.config)
    scores = random_scores(geometry) if policy.needs_scores else None
    turns = conversation(prompt, decoded)
    with compress(model, policy, budget=budget, scores=scores, keep_positions=True, slack=7) as session:
        fast = logits_of(model, session.new_cache(), turns)
    plan = session.plan
    with oracle_attention(model, plan, geometry.full_attention_layers) as state:
        slow = logits_of(model, DynamicCache(config=model.config), turns)
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-4)
    check_positions(session, state, geometry, prompt)
    return session


def check_positions(session: CompressionSession, state: Any, geometry: ModelGeometry, prompt: int) -> None:
    assert session.cache is not None
    for index, layer in enumerate(session.cache.ragged_layers):
        for head in range(geometry.num_key_value_heads):
            wanted = state.heads[geometry.full_attention_layers[index], head]
            if layer.evictor is not None:
                start, length = int(layer.store.starts[head]), int(layer.store.lengths[head])
                assert set(layer.evictor.position[start : start + length].tolist()) == wanted.kept
            else:
                mine = {j for j in layer.positions[head].tolist() if j >= 0}
                assert mine == {j for j in wanted.kept if j < prompt}


MIXED = ("headkv-r2", "h2o", "vatp-scissorhands", "ada-snapkv", "razor")
SHAPES = [
    pytest.param(name, heads, groups, marks=[] if groups == 2 or name in MIXED else pytest.mark.slow)
    for heads, groups in ((4, 4), (4, 2), (4, 1))
    for name in POLICIES
]


@pytest.mark.parametrize(("name", "heads", "groups"), SHAPES)
def test_decoding_equals_masked_dense_attention(name: str, heads: int, groups: int) -> None:
    policy = make_policy(name)
    compare(small_llama(heads, groups), policy, None if policy.keeps_all else 20, prompt=61)


@pytest.mark.parametrize("name", MIXED)
@pytest.mark.parametrize("prompt", [7, 8, 9, 16, 17, 33])
def test_prompts_around_window_and_budget(name: str, prompt: int) -> None:
    compare(small_llama(4, 2), make_policy(name), 16, prompt=prompt, decoded=12)


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "phi3", "olmo2", "gpt-oss"])
@pytest.mark.parametrize("name", ["headkv-vatp", "vatp-h2o"])
def test_model_families_keep_their_ways(family: str, name: str) -> None:
    """Sinks, softcap, query-key norm, sliding layers in between."""
    compare(tiny_model(family), make_policy(name), 20, prompt=40, decoded=10)


@pytest.mark.parametrize(
    "pair", ["accumulated+head-score", "history+pyramid", "accumulated+adaptive", "window+retrieval-full"]
)
def test_selectors_and_allocators_combine_freely(pair: str) -> None:
    compare(small_llama(4, 2), make_policy(pair), 24, prompt=70, decoded=8)


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128, 256])
def test_head_widths(head_dim: int) -> None:
    compare(small_llama(4, 2, head_dim), make_policy("headkv-r2"), 20, prompt=40, decoded=5)


def test_history_drops_old_blocks_of_queries() -> None:
    from dataclasses import replace

    from headprobe.compression.selectors import History

    policy = replace(make_policy("scissorhands"), selector=History(queries=12, keep=3, block=4))
    compare(small_llama(4, 2), policy, 14, prompt=45)


@pytest.mark.parametrize("name", POLICIES)
def test_a_budget_as_long_as_the_prompt_changes_nothing(name: str) -> None:
    model, policy = small_llama(4, 2), make_policy(name)
    turns = conversation(40, 12)
    with torch.inference_mode():
        plain = logits_of(model, DynamicCache(config=model.config), turns)
    scores = random_scores(ModelGeometry.from_config(model.config)) if policy.needs_scores else None
    with compress(model, policy, budget=None if policy.keeps_all else 64, scores=scores) as session:
        torch.testing.assert_close(logits_of(model, session.new_cache(), turns), plain, atol=1e-5, rtol=1e-4)


def test_totals_are_exact_to_the_entry() -> None:
    model = small_llama(4, 2)
    geometry = ModelGeometry.from_config(model.config)
    for name in POLICIES:
        policy = make_policy(name)
        if policy.keeps_all:
            continue
        scores = random_scores(geometry) if policy.needs_scores else None
        with compress(model, policy, budget=20, scores=scores) as session:
            logits_of(model, session.new_cache(), [tokens(97)])
        assert session.cache is not None
        assert int(session.cache.lengths.sum()) == 20 * 2 * 2, name


def test_plans_refuse_what_does_not_fit() -> None:
    from headprobe.errors import OptionError

    with pytest.raises(
        OptionError, match="a budget of 5 entries per KV head is below the 8 that window and sinks take"
    ):
        CompressionPlan(make_policy("snapkv"), 2, 2, budget=5)
    with pytest.raises(OptionError, match="a ratio of 1.5 is out of range"):
        CompressionPlan(make_policy("snapkv"), 2, 2, ratio=1.5)
    with pytest.raises(OptionError, match="needs a budget or a ratio, one of the two"):
        CompressionPlan(make_policy("snapkv"), 2, 2)
    with pytest.raises(OptionError, match="the policy headkv-r2 needs head scores"):
        CompressionPlan(make_policy("headkv-r2"), 2, 2, budget=20)
    assert np.array_equal(CompressionPlan(make_policy("full"), 1, 2).capacities(9), [[9, 9]])


@pytest.mark.parametrize("vocabulary", [1, 63, 64, 128, 50, 6400])
def test_the_most_likely_token_is_argmaxs_also_among_equal_ones_and_nan(vocabulary: int) -> None:
    for _ in range(20):
        logits = torch.randint(-3, 4, (5, vocabulary)).float()
        if vocabulary > 2:
            logits[1, vocabulary // 2] = torch.nan
            logits[2, -1] = torch.inf
        assert most_likely(logits).tolist() == logits.argmax(-1).tolist()

"""Caches made from one reading, against those of runs of their own: entries, positions, logits and tokens."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

from headprobe.compression import reading_layer
from headprobe.compression.decoding import Decoder, Sampler, run_step
from headprobe.compression.generation import AnswerOptions, generate
from headprobe.compression.importance import Observation
from headprobe.compression.many_answers import Asked, VariantAnswer, answer, answers, cache_nbytes
from headprobe.compression.policies import POLICIES, CompressionPlan, Policy, make_policy
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.read_once import Reading, read_once
from headprobe.compression.selectors import OneColumn
from headprobe.compression.session import compress, make_plan
from headprobe.errors import ModelError, NonFiniteError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.loading import load_model
from headprobe.models.releases import with_cache
from tests.compression.scores import random_scores
from tests.compression.test_decoding import small_llama, tokens
from tests.compression.test_joining import read
from tests.tiny_models import tiny_model

NAMES = tuple(POLICIES)
STEPS = 6


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


def plan_of(model: Any, policy: str | Policy, budget: int = 20) -> CompressionPlan:
    chosen = make_policy(policy) if isinstance(policy, str) else policy
    scores = random_scores(ModelGeometry.from_config(model.config)) if chosen.needs_scores else None
    return make_plan(model, chosen, budget=None if chosen.keeps_all else budget, scores=scores)


def plans_of(model: Any, *budgets: int) -> list[CompressionPlan]:
    """All policies at every budget, `full` once."""
    return [plan_of(model, name, budget) for name in NAMES for budget in (budgets[:1] if name == "full" else budgets)]


@torch.inference_mode()
def steps(model: Any, cache: RaggedCache, logits: torch.Tensor, count: int = STEPS) -> torch.Tensor:
    """Logits `[B, count, vocabulary]` of a prompt and the greedy tokens behind it."""
    decoder, given = Decoder(model, cache), [logits]
    for _ in range(count - 1):
        given.append(decoder.step(given[-1].argmax(-1)).clone())
    return torch.stack(given, 1)


def run_alone(model: Any, plan: CompressionPlan, ids: torch.Tensor, mask: Any = None, **more: Any) -> Any:
    """A run that reads the prompt for itself: lengths, positions and logits."""
    scores = None
    if plan.policy.needs_scores:
        scores = random_scores(ModelGeometry.from_config(model.config))
    with compress(
        model, plan.policy, budget=plan.budget, scores=scores, keep_positions=True, slack=8, **more
    ) as session:
        cache, logits = read(session, ids, mask)
        return seen_in(cache, steps(model, cache, logits))


def seen_in(cache: RaggedCache, logits: torch.Tensor) -> tuple[Any, Any, torch.Tensor]:
    positions = [[each.tolist() for each in layer.positions] for layer in cache.ragged_layers]
    return cache.lengths.tolist(), positions, logits


def check_each(model: Any, plans: list[CompressionPlan], ids: torch.Tensor, mask: Any = None, **more: Any) -> None:
    """Every plan's cache from one reading is that of a run of its own, whatever was done with the others before."""
    found = []
    with read_once(model, [plan.policy for plan in plans], **more) as reader:
        reading = reader.read(ids, mask)
        for plan in plans:
            cache, logits = reading.cache([plan], slack=8, keep_positions=True)
            found.append(seen_in(cache, steps(model, cache, logits)))
    for plan, (lengths, positions, logits) in zip(plans, found, strict=True):
        alone = run_alone(model, plan, ids, mask, **more)
        assert (lengths, positions) == alone[:2], plan.policy.name
        torch.testing.assert_close(logits, alone[2], atol=1e-5, rtol=0.0, msg=plan.policy.name)


@pytest.mark.parametrize("count", [1, 2, 7, 21, 90])
def test_every_policys_cache_is_that_of_a_run_of_its_own(llama: Any, count: int) -> None:
    """Prompts of one token, shorter than the window, around the budget, and longer; budgets beyond them too."""
    check_each(llama, plans_of(llama, 20, 40), tokens(count))


@pytest.mark.parametrize("family", ["qwen3", "gemma2", "gemma3", "gpt-oss", "phi3", "olmo2"])
def test_families_with_windows_sinks_and_caps_are_read_once_too(family: str) -> None:
    model = tiny_model(family)
    names = ("full", "h2o", "vatp-scissorhands", "ada-snapkv", "headkv-vatp", "razor", "streaming-llm")
    check_each(model, [plan_of(model, name) for name in names], tokens(50, vocabulary=300))


def test_the_bundled_model_is_read_once_for_all_policies() -> None:
    model = load_model("demo", dtype="float32").model
    check_each(model, plans_of(model, 48), tokens(300, vocabulary=2000))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_padded_batches_are_read_once(family: str) -> None:
    model = tiny_model(family)
    ids = torch.cat([tokens(60, seed=seed, vocabulary=300) for seed in range(3)])
    mask = torch.tensor([[0] * 57 + [1] * 3, [1] * 60, [0] * 20 + [1] * 40])
    check_each(model, plans_of(model, 16), ids, mask)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_prompts_in_chunks_are_read_once(family: str) -> None:
    model = tiny_model(family)
    check_each(model, plans_of(model, 16), tokens(70, vocabulary=300), prefill_chunk=16)


def test_layers_of_another_kind_are_copied_and_plans_go_one_by_one() -> None:
    """Convolutions keep a state of their own, which every plan's cache must have for itself."""
    config = Lfm2Config(
        vocab_size=384, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"], bos_token_id=1, eos_token_id=2,
        pad_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Lfm2ForCausalLM(config).float().eval()
    plans = [plan_of(model, name) for name in ("full", "snapkv", "h2o", "razor")]
    check_each(model, plans, tokens(50, vocabulary=300))
    with read_once(model, NAMES) as reader:
        made = collected(answers(reader.read(tokens(50)), plans, Asked(AnswerOptions(3)), most_bytes=1 << 40))
    assert [made[place].together for place in range(4)] == [1, 1, 1, 1]


def test_windows_and_pools_beside_each_other_each_see_their_own_queries(llama: Any) -> None:
    policies = [make_policy("snapkv", window=window, pool=pool) for window, pool in ((2, 3), (8, 7), (16, 1))]
    check_each(llama, [plan_of(llama, policy, budget) for policy in policies for budget in (17, 30)], tokens(80))


@dataclass(frozen=True)
class AllQueries(OneColumn):
    """A selector of somebody else's that looks at all the queries that it is shown."""

    name: ClassVar[str] = "all-queries"
    num_queries = 3

    def scores(self, observation: Observation) -> torch.Tensor:
        assert observation.column_sums is None
        return observation.rows(observation.query.shape[1]).sum(1)[..., None]

    def recent(self, capacity: int) -> int:
        return 0


def test_a_selector_is_shown_what_it_asked_for_and_no_more(llama: Any) -> None:
    own = replace(make_policy("window+uniform"), name="own", selector=AllQueries())
    check_each(
        llama, [plan_of(llama, policy) for policy in (own, make_policy("h2o"), make_policy("snapkv"))], tokens(60)
    )


def test_reading_gives_the_same_logits_whatever_the_policies(llama: Any) -> None:
    """No policy changes what is computed while a prompt is read."""
    given = []
    for name in NAMES:
        with torch.inference_mode(), compress(llama, name, **_rest(llama, name)) as session:
            given.append(run_step(llama, session.new_cache(), tokens(60)))
    with read_once(llama, NAMES) as reader:
        given.append(reader.read(tokens(60)).cache([plan_of(llama, "full")])[1])
    assert all(torch.equal(logits, given[0]) for logits in given)


def _rest(model: Any, name: str) -> dict[str, Any]:
    scores = random_scores(ModelGeometry.from_config(model.config)) if make_policy(name).needs_scores else None
    return {"budget": None if name == "full" else 20, "scores": scores}


def test_a_given_continuation_is_scored_on_the_compressed_cache(llama: Any) -> None:
    later = tokens(5, seed=9)
    with read_once(llama, ["snapkv"]) as reader:
        reading = reader.read(tokens(60))
        given = reading.logits_of(plan_of(llama, "snapkv"), later)
        one = reading.logits_of(plan_of(llama, "snapkv"), later[:, :1])
    with torch.inference_mode(), compress(llama, "snapkv", budget=20) as session:
        cache, first = read(session, tokens(60))
        rest = llama(input_ids=later[:, :-1], **with_cache(llama, cache)).logits
    torch.testing.assert_close(given, torch.cat([first[:, None], rest], 1), atol=1e-5, rtol=0.0)
    torch.testing.assert_close(one, first[:, None], atol=1e-5, rtol=0.0)


# -- answers -----------------------------------------------------------------------------------------------------------


def collected(found: Any) -> dict[int, VariantAnswer]:
    return {each.place: each for each in found}


def test_answers_are_those_of_generate_alone_and_together(llama: Any) -> None:
    plans, prompt, end = plans_of(llama, 16, 30), tokens(60), frozenset({17, 40})
    with read_once(llama, NAMES) as reader:
        reading = reader.read(prompt[0].tolist())
        alone = [answer(reading, plan, Asked(AnswerOptions(9, end), slack=9))[0][0] for plan in plans]
        small = collected(answers(reading, plans, Asked(AnswerOptions(9, end), slack=9)))
        large = collected(answers(reading, plans, Asked(AnswerOptions(9, end), slack=9), most_bytes=1 << 40))
    assert {each.together for each in large.values()} == {2, 19}  # each evicting policy's two budgets; all the others
    assert sorted(small) == sorted(large) == list(range(len(plans)))
    for place, plan in enumerate(plans):
        with compress(
            llama, plan.policy, slack=9, **_rest(llama, plan.policy.name) | {"budget": plan.budget}
        ) as session:
            wanted = generate(session, prompt[0].tolist(), max_new_tokens=9, eos_token_ids=end)
        for made in (alone[place], small[place].generations[0], large[place].generations[0]):
            assert _counted(made) == _counted(wanted), plan.policy.name
    assert alone[0].tokens_per_s is not None
    assert large[0].generations[0].tokens_per_s is None  # a batch's clock says nothing of one of them


def _counted(made: Any) -> tuple[Any, ...]:
    """All of a `Generation` but times and memory."""
    return (
        made.tokens,
        made.prompt_tokens,
        made.lengths,
        made.kv_entries,
        made.kv_bytes,
        made.full_kv_bytes,
        made.kernel,
    )


@pytest.mark.parametrize("family", ["llama", "gemma3"])
@pytest.mark.parametrize("most", [1, 1 << 40])
def test_a_question_can_be_read_behind_what_was_compressed(family: str, most: int) -> None:
    model = tiny_model(family)
    plans, context, question = plans_of(model, 16), tokens(50, vocabulary=300)[0], tokens(7, 2, 300)[0]
    with read_once(model, NAMES) as reader:
        reading = reader.read(context)
        made = collected(answers(reading, plans, Asked(AnswerOptions(6), question, 13), most_bytes=most))
    for place, plan in enumerate(plans):
        with compress(
            model, plan.policy, slack=13, **_rest(model, plan.policy.name) | {"budget": plan.budget}
        ) as session:
            wanted = generate(session, [*context.tolist(), *question.tolist()], max_new_tokens=6, context_tokens=50)
        assert _counted(made[place].generations[0]) == _counted(wanted), plan.policy.name


def test_a_batch_gets_an_answer_for_each_prompt_and_plan(llama: Any) -> None:
    prompts = [tokens(count, seed=count) for count in (31, 57, 12)]
    ids = torch.cat([torch.nn.functional.pad(row, (57 - row.shape[1], 0)) for row in prompts])
    mask = torch.tensor([[0] * 26 + [1] * 31, [1] * 57, [0] * 45 + [1] * 12])
    plans = plans_of(llama, 16)
    with read_once(llama, NAMES) as reader:
        made = collected(answers(reader.read(ids, mask), plans, Asked(AnswerOptions(7), slack=7), most_bytes=1 << 40))
    for place, plan in enumerate(plans):
        for row, given in zip(prompts, made[place].generations, strict=True):
            with compress(llama, plan.policy, slack=7, **_rest(llama, plan.policy.name) | {"budget": plan.budget}) as s:
                wanted = generate(s, row[0].tolist(), max_new_tokens=7)
            assert _counted(given) == _counted(wanted), plan.policy.name


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss"])
def test_plans_in_one_cache_go_on_as_each_alone(family: str) -> None:
    """Entries exactly, logits to 1e-5 of the largest: a batch rounds otherwise than one row."""
    model, mask = tiny_model(family), torch.tensor([[0] * 30 + [1] * 20, [1] * 50])
    ids = torch.cat([tokens(50, seed=seed, vocabulary=300) for seed in range(2)])
    plans = plans_of(model, 12, 30, 70)
    for kind in (None, "h2o", "vatp-scissorhands", "streaming-llm"):
        group = [plan for plan in plans if (plan.policy.name if plan.policy.evicts_while_decoding else None) == kind]
        with read_once(model, NAMES) as reader:
            reading = reader.read(ids, mask)
            cache, logits = reading.cache(group, slack=8, keep_positions=True)
            lengths, positions, given = seen_in(cache, steps(model, cache, logits))
            for place, plan in enumerate(group):
                alone, first = reading.cache([plan], slack=8, keep_positions=True)
                wanted = seen_in(alone, steps(model, alone, first))
                rows = slice(2 * place, 2 * place + 2)
                assert [layer[rows] for layer in lengths] == wanted[0]
                assert [layer[4 * place : 4 * place + 4] for layer in positions] == wanted[1]
                largest = float(wanted[2].abs().max())
                torch.testing.assert_close(given[rows], wanted[2], atol=1e-5 * largest, rtol=0.0)


def test_drawn_tokens_are_those_of_a_run_alone(llama: Any) -> None:
    drawn = AnswerOptions(12, sampler=Sampler(temperature=1.5, seed=3))
    with read_once(llama, ["snapkv", "full"]) as reader:
        made = collected(
            answers(reader.read(tokens(40)), [plan_of(llama, "snapkv"), plan_of(llama, "full")], Asked(drawn))
        )
    with compress(llama, "snapkv", budget=20) as session:
        wanted = generate(session, tokens(40)[0].tolist(), max_new_tokens=12, sampler=drawn.sampler)
    assert made[0].generations[0].tokens == wanted.tokens
    assert {each.together for each in made.values()} == {1}


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted_apart() -> Iterator[None]:
    """Objects that are there by now are left out of `held_bytes`, and out of the collector's way."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def held_bytes() -> int:
    """Bytes of all floating-point storages that came to be since `counted_apart` began and are still alive."""
    gc.collect()
    alive = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.is_floating_point()]
    return sum({each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in alive}.values())


@pytest.fixture(scope="module")
def fused() -> Any:
    """Its queries, keys and values are one product: a layer's keys are part of something larger."""
    return tiny_model("phi3")


@pytest.mark.usefixtures("fused", "counted_apart")
@pytest.mark.parametrize("most_bytes", [None, 1])
def test_memory_is_the_full_cache_and_one_compressed_cache(
    fused: Any, monkeypatch: pytest.MonkeyPatch, most_bytes: int
) -> None:
    """Counted at every decoding step, tensors of the step included, with the selectors' scores beside them."""
    model, counted = fused, []
    with read_once(model, NAMES) as reader:
        reading = reader.read(tokens(300, vocabulary=300))
        full = 2 * 2 * 2 * 300 * 8 * 4  # keys and values, layers, KV heads, tokens, width, bytes
        scores = 2 * 2 * 300 * 4 * (1 + 1 + 9 + 1)  # four selectors, of which `history` has nine columns
        assert (reading.nbytes, reading.scores_nbytes) == (full, scores)
        logits = model.config.vocab_size * 4
        assert held_bytes() == full + scores + logits
        plain = torch.nn.Linear.forward

        def watched(self: Any, states: torch.Tensor) -> torch.Tensor:
            if self is model.lm_head:
                counted.append(held_bytes())
            return plain(self, states)

        monkeypatch.setattr(torch.nn.Linear, "forward", watched)
        plans = [plan for plan in plans_of(model, 16, 32, 64) if not plan.policy.keeps_all]
        list(answers(reading, plans, Asked(AnswerOptions(4), slack=4), most_bytes=most_bytes))
        largest = max(cache_nbytes(reading, plan, 4) for plan in plans)
        assert len(counted) > 12
        bookkeeping = largest // (2 * 8 * 4) * (4 * 9 + 8 + 4)  # scores, positions and norms of policies that evict
        activations = 30_000  # of a step of up to 12 sequences, their logits included
        assert max(counted) < full + scores + logits + largest + bookkeeping + activations
        assert largest < full / 3


def test_caches_do_not_share_what_they_write(llama: Any) -> None:
    with read_once(llama, ["full", "h2o"]) as reader:
        reading = reader.read(tokens(40))
        before = [steps(llama, *reading.cache([plan_of(llama, name)], slack=1), 12) for name in ("full", "h2o")]
        again = [steps(llama, *reading.cache([plan_of(llama, name)], slack=64), 12) for name in ("full", "h2o")]
    torch.testing.assert_close(before, again, atol=1e-5, rtol=0.0)


# -- what goes another way, and what is refused ------------------------------------------------------------------------


def test_where_the_full_cache_does_not_fit_each_plan_reads_for_itself(
    llama: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reading_layer, "as_wanted", full)
    plans = [plan_of(llama, name) for name in ("snapkv", "h2o", "headkv-r2")]
    with read_once(llama, NAMES) as reader:
        reading = reader.read(tokens(60))
        made = collected(answers(reading, plans, Asked(AnswerOptions(8)), most_bytes=1 << 40))
    assert not reading.is_shared
    assert reading.nbytes == 0
    for place, plan in enumerate(plans):
        with compress(llama, plan.policy, **_rest(llama, plan.policy.name)) as session:
            wanted = generate(session, tokens(60)[0].tolist(), max_new_tokens=8)
        assert made[place].generations[0].tokens == wanted.tokens
        assert (
            made[place].read_again
            == "the full cache of 60 tokens does not fit: each policy reads the prompt for itself"
        )


def test_a_released_reading_holds_nothing_and_still_answers(llama: Any) -> None:
    plan = plan_of(llama, "snapkv")
    with read_once(llama, ["snapkv"]) as reader:
        reading = reader.read(tokens(60))
        shared = answer(reading, plan, Asked(AnswerOptions(8)))[0][0].tokens
        reading.release()
        assert (reading.nbytes, reading.scores_nbytes, reading.can_join) == (0, 0, False)
        assert answer(reading, plan, Asked(AnswerOptions(8)))[0][0].tokens == shared


def test_the_model_is_as_before_afterwards(llama: Any) -> None:
    own = llama.config._attn_implementation
    with read_once(llama, NAMES) as reader:
        reader.read(tokens(20))
        with pytest.raises(IndexError):
            reader.read([96, 97])  # beyond the vocabulary
    assert llama.config._attn_implementation == own


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "a cache needs at least one plan"),
        (["h2o", "snapkv"], r"h2o evicts while decoding and can't share a cache with others \(h2o, snapkv\)"),
        (["h2o", "vatp-h2o"], "h2o evicts while decoding"),
        (["pyramidkv"], "pyramidkv selects by Window.*, but the prompt was read for SinkRecent.*name all policies"),
    ],
)
def test_caches_that_cannot_be_made_are_refused(llama: Any, names: list[str], message: str) -> None:
    with read_once(llama, ["full", "streaming-llm", "h2o"]) as reader:
        reading = reader.read(tokens(40))
        with pytest.raises(OptionError, match=message):
            reading.cache([plan_of(llama, name) for name in names])


def test_empty_prompts_and_unknown_names_are_refused(llama: Any) -> None:
    with read_once(llama, ["full"]) as reader, pytest.raises(OptionError, match="the prompt is empty"):
        reader.read([])
    with pytest.raises(OptionError, match="unknown policy 'nonesuch'"), read_once(llama, ["nonesuch"]):
        pass
    with pytest.raises(OptionError, match="unknown attention kernel"), read_once(llama, ["full"], attention="x"):
        pass
    with pytest.raises(ModelError, match="no full-attention layer"), read_once(tiny_model("mistral"), ["full"]):
        pass


def test_logits_that_are_not_finite_are_refused(llama: Any) -> None:
    model = small_llama(4, 2)
    with torch.no_grad():
        model.model.layers[-1].self_attn.v_proj.weight[0, 0] = torch.nan
    with read_once(model, ["snapkv"]) as reader:
        reading: Reading = reader.read(tokens(30))
        with pytest.raises(NonFiniteError, match="NaN or infinity in the logits of new token 1"):
            answer(reading, plan_of(model, "snapkv"))

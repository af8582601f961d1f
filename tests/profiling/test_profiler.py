"""The fast profiler against the plain oracle, on random models of every architecture it promises to read."""

from __future__ import annotations

import random

import pytest
import torch

from headprobe.attention import masks
from headprobe.attention.rows import row_capture
from headprobe.errors import DeviceMemoryError, ModelError, NonFiniteError
from headprobe.probes.prompt import NullPrompt, Prompt
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.profiling.estimators.estimator import NEEDLES, Target, prompts_of
from headprobe.profiling.estimators.hits import PUBLISHED_RETRIEVAL
from headprobe.profiling.passes import Passes, Skipped
from headprobe.profiling.prefix import PrefixLayer, prefix_order
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.spans import Span
from tests.profiling.oracle import oracle_question, oracle_trial
from tests.tiny_models import TINY_MODELS, tiny_config, tiny_model

VOCABULARY = 64
ON_NEEDLES = [name for name in ESTIMATORS.ours if prompts_of(ESTIMATORS[name]) == NEEDLES]


def make_prompts(seed: int, lengths: tuple[int, ...] = (40, 57, 57, 64), answer: int = 5) -> list[Prompt]:
    """Prompts that share a random haystack up to their insertion points, with an answer and a distractor inside."""
    r = random.Random(seed)
    haystack = [r.randrange(3, VOCABULARY) for _ in range(max(lengths))]
    prompts = []
    for number, length in enumerate(lengths):
        at = r.randrange(1, length - 2 * answer - 6)
        needle = [r.randrange(3, VOCABULARY) for _ in range(2 * answer)]
        question = [r.randrange(3, VOCABULARY) for _ in range(4)]
        nothing = tuple(r.randrange(3, VOCABULARY) for _ in range(3))
        ids = tuple(haystack[:at] + needle + haystack[at : length - 2 * answer - 4] + question)
        prompts.append(
            Prompt(
                trial_id=f"t{number}",
                text="",
                input_ids=ids,
                answer_span=Span(at, at + answer),
                distractor_span=Span(at + answer, at + 2 * answer),
                question_span=Span(length - 4, length),
                needle_span=Span(at, at + 2 * answer),
                answer_ids=tuple(needle[:answer]),
                haystack_repeats=0.0,
                null=NullPrompt(ids[: length - 4] + nothing, Span(length - 4, length - 2)),
            )
        )
    return prompts


def with_answers(model, prompts: list[Prompt], agree: int) -> list[Prompt]:  # type: ignore[no-untyped-def]
    """The same prompts with gold answers that the model itself gives for `agree` tokens and then departs from."""
    changed = []
    for prompt in prompts:
        ids = list(prompt.input_ids)
        for _ in range(len(prompt.answer_ids)):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        own = ids[len(prompt.input_ids) :]
        gold = tuple(own[:agree] + [(t + 1) % VOCABULARY for t in own[agree:]])
        changed.append(Prompt(**{**vars(prompt), "answer_ids": gold}))
    return changed


def measure(model, prompts, eos=frozenset(), **options):  # type: ignore[no-untyped-def]
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set(eos), **options)
    return {prompt.trial_id: result for prompt, result in profiler.measure(prompts)}


def assert_equals_oracle(model, prompts, results, eos=frozenset()) -> None:  # type: ignore[no-untyped-def]
    model.set_attn_implementation("eager")
    for prompt in prompts:
        target = Target(prompt.input_ids, prompt.answer_span, prompt.distractor_span)
        result = results[prompt.trial_id]
        assert isinstance(result, Measured)
        assert set(result.scores) == set(ON_NEEDLES)
        for name in ON_NEEDLES:
            if name == "qr":
                asked = prompt.input_ids, prompt.question_span
                scores = oracle_question(model, *asked, prompt.null, prompt.answer_span)
            else:
                produced, scores = oracle_trial(model, prompt.input_ids, target, len(prompt.answer_ids), set(eos), name)
                assert list(result.produced) == produced
            torch.testing.assert_close(
                result.scores[name], torch.tensor(scores, dtype=torch.float64), atol=1e-5, rtol=0, msg=f"{name}"
            )


@pytest.mark.parametrize("architecture", TINY_MODELS)
@pytest.mark.parametrize("agree", [0, 2, 5])
def test_scores_equal_the_oracle_for_every_architecture(architecture: str, agree: int) -> None:
    model = tiny_model(architecture, seed=agree)
    prompts = with_answers(model, make_prompts(seed=agree), agree)
    assert_equals_oracle(model, prompts, measure(model, prompts))


def test_scores_equal_the_oracle_when_an_end_token_comes_early() -> None:
    model = tiny_model("llama", seed=3)
    prompts = with_answers(model, make_prompts(seed=3), 5)
    eos = {prompts[0].answer_ids[1]}
    results = measure(model, prompts, eos)
    assert len(results["t0"].produced) == 2
    assert_equals_oracle(model, prompts, results, eos)


@pytest.mark.parametrize("chunk", [1, 7, 16, 1000])
def test_the_size_of_prefill_pieces_does_not_change_scores(chunk: int) -> None:
    model = tiny_model("mistral", seed=1)
    prompts = with_answers(model, make_prompts(seed=1), 3)
    assert_equals_oracle(model, prompts, measure(model, prompts, prefill_chunk=chunk))


def moving_model(kind: str):  # type: ignore[no-untyped-def]
    """A model whose rotary frequencies change beyond 48 tokens."""
    from transformers import AutoModelForCausalLM

    config = tiny_config("llama")
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 8.0}
    if kind == "longrope":
        half = config.hidden_size // config.num_attention_heads // 2
        factors = {"short_factor": [1.0] * half, "long_factor": [3.0] * half}
        config.rope_parameters |= {**factors, "original_max_position_embeddings": 48}
    else:
        config.max_position_embeddings = 48
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


@pytest.mark.parametrize("agree", [0, 2, 5])
def test_lengths_on_both_sides_of_a_change_of_frequencies_equal_the_oracle(agree: int) -> None:
    model = moving_model("longrope")
    prompts = with_answers(model, make_prompts(seed=agree, lengths=(64, 40, 57, 36)), agree)
    assert_equals_oracle(model, prompts, measure(model, prompts, prefill_chunk=16))


def test_frequencies_that_grow_with_the_length_do_not_depend_on_the_prompts_before() -> None:
    model = moving_model("dynamic")
    prompts = make_prompts(seed=1, lengths=(64, 52, 57, 40))
    every = measure(model, prompts)
    for prompt in prompts:
        alone = measure(moving_model("dynamic"), [prompt])[prompt.trial_id]
        assert alone.produced == every[prompt.trial_id].produced
        for name in ON_NEEDLES:
            assert torch.equal(alone.scores[name], every[prompt.trial_id].scores[name])


def test_growing_frequencies_give_the_tokens_that_the_model_gives_by_itself() -> None:
    model = moving_model("dynamic")
    (prompt,) = prompts = make_prompts(seed=2, lengths=(64,))
    ids = torch.tensor([prompt.input_ids])
    own = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert list(measure(model, prompts)["t0"].produced) == own[0, 64:].tolist()


def test_what_a_trial_gives_does_not_depend_on_the_trials_before_it() -> None:
    model = tiny_model("qwen3", seed=2)
    prompts = make_prompts(seed=2)
    every = measure(model, prompts)
    order, _ = prefix_order(prompts)
    finished = {prompts[i].trial_id for i in order[:2]}
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set())
    rest = {prompt.trial_id: result for prompt, result in profiler.measure(prompts, finished)}
    assert set(rest) == set(every) - finished
    for trial, result in rest.items():
        assert all(torch.equal(result.scores[name], every[trial].scores[name]) for name in ON_NEEDLES)


def test_prompts_share_the_prefix_of_the_deepest_insertion_point() -> None:
    prompts = make_prompts(seed=4)
    order, shared = prefix_order(prompts)
    starts = [prompts[i].needle_span.start for i in order]
    assert starts == sorted(starts, reverse=True)
    assert all(common >= start for common, start in zip(shared, starts, strict=True))
    deepest = prompts[order[0]].input_ids
    assert all(prompts[i].input_ids[:n] == deepest[:n] for i, n in zip(order, shared, strict=True))


def test_the_models_own_attention_is_restored_after_an_error() -> None:
    model = tiny_model("llama")
    before = model.config._attn_implementation
    with row_capture(model):
        assert model.config._attn_implementation == "headprobe_0"
    with pytest.raises(RuntimeError, match="stop"), row_capture(model):
        raise RuntimeError("stop")
    assert model.config._attn_implementation == before


def test_the_models_own_mlp_is_restored_after_an_error() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        before = model.model(ids).last_hidden_state
    with pytest.raises(KeyError), row_capture(model):
        raise KeyError
    with torch.no_grad():
        assert torch.equal(model.model(ids).last_hidden_state, before)


@pytest.mark.parametrize("architecture", ["llama", "mistral", "gemma3", "gpt-oss"])
def test_no_mask_of_tokens_by_keys_is_built(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a mask was built")

    monkeypatch.setattr(masks, "sdpa_mask", refuse)
    assert len(measure(tiny_model(architecture), make_prompts(5))) == 4


def test_a_model_without_the_attention_interface_is_refused() -> None:
    class Config:
        _attn_implementation = "own"

    class Model:
        config = Config()

        def set_attn_implementation(self, name: str) -> None:
            pass

    with pytest.raises(ModelError, match="Model does not use transformers' attention interface"), row_capture(Model()):
        pass


def test_a_layer_that_does_not_attend_is_named_not_scored() -> None:
    model = tiny_model("llama")
    model.config.num_hidden_layers = 3
    with pytest.raises(ModelError, match="2 of 3 layers of LlamaForCausalLM could be read"):
        measure(model, make_prompts(seed=5))


def test_more_heads_than_the_config_says_are_refused() -> None:
    model = tiny_model("llama")
    model.config.num_attention_heads = 2
    with pytest.raises(ModelError, match="layer 0 of LlamaForCausalLM has 4 heads, its config says 2"):
        measure(model, make_prompts(seed=5))


def test_a_model_that_caches_each_token_twice_is_refused() -> None:
    layer = PrefixLayer(capacity=3)
    states = torch.zeros(1, 2, 2, 8)
    layer.update(states, states)
    with pytest.raises(ModelError, match="caches 4 tokens of at most 3"):
        layer.update(states, states)


def test_nan_in_the_attention_names_layer_and_trial() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.q_proj.weight.fill_(float("nan"))
    prompts = make_prompts(seed=5)
    with pytest.raises(NonFiniteError, match="attention of layer 1 in trial t"):
        measure(model, prompts)


def test_nan_of_the_last_layer_shows_in_the_logits_and_names_the_trial() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[1].self_attn.v_proj.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"in the logits in trial t\d: .*NaN \(model.layers.1.self_attn.v_proj"):
        measure(model, make_prompts(seed=5))


def test_infinity_in_a_step_of_its_own_names_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = tiny_model("llama"), Passes.run

    def broken(self: Passes, tokens: tuple[int, ...], keep: int) -> torch.Tensor:
        logits = original(self, tokens, keep)
        return logits.index_fill(1, torch.tensor([4]), torch.inf) if len(tokens) == 1 else logits

    prompts = with_answers(model, make_prompts(seed=5), 2)
    monkeypatch.setattr(Passes, "run", broken)
    with pytest.raises(NonFiniteError, match=r"in the logits in trial t\d: it is computed in float32 already"):
        measure(model, prompts)


def test_entries_of_the_vocabulary_that_are_masked_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model, original = tiny_model("llama"), Passes.run

    def masked(self: Passes, tokens: tuple[int, ...], keep: int) -> torch.Tensor:
        return original(self, tokens, keep).index_fill(1, torch.tensor([1, 2]), -torch.inf)

    monkeypatch.setattr(Passes, "run", masked)
    assert len(measure(model, make_prompts(seed=5))) == 4


def test_out_of_memory_halves_the_pieces_and_then_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=6)
    prompts = with_answers(model, make_prompts(seed=6), 3)
    fail_above(monkeypatch, tokens=300)
    long = with_answers(model, make_prompts(seed=6, lengths=(700, 650)), 3)
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set(), prefill_chunk=1024)
    results = {p.trial_id: r for p, r in profiler.measure(long)}
    assert profiler.passes.chunk == 256
    assert profiler.passes.cache.get_seq_length() == min(prefix_order(long)[1])
    assert_equals_oracle(model, long, results)
    assert_equals_oracle(model, prompts, measure(model, prompts))


def test_a_trial_that_does_not_fit_is_skipped_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=7)
    prompts = make_prompts(seed=7, lengths=(400, 60))
    fail_above(monkeypatch, tokens=100)
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set(), prefill_chunk=256)
    results = {p.trial_id: r for p, r in profiler.measure(prompts)}
    assert results["t0"] == Skipped("out of memory on cpu at 400 tokens")
    assert isinstance(results["t1"], Measured)


def test_nothing_that_fits_is_an_error_with_the_shortest_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=7)
    fail_above(monkeypatch, tokens=10)
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set(), prefill_chunk=256)
    with pytest.raises(DeviceMemoryError, match="the shortest prompt has 60 tokens"):
        list(profiler.measure(make_prompts(seed=7, lengths=(400, 60))))


def fail_above(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Let every pass of more than `tokens` tokens run out of memory."""
    original = Passes.run

    def limited(self, ids, keep):  # type: ignore[no-untyped-def]
        if len(ids) > tokens:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, ids, keep)

    monkeypatch.setattr(Passes, "run", limited)


# -- behind the steps that are scored -------------------------------------------------------------------------------


def greedy(model, ids, count, eos=frozenset()):  # type: ignore[no-untyped-def]
    """Plain greedy decoding without a cache, until `count` tokens or one of `eos`."""
    said: list[int] = []
    while len(said) < count and not (said and said[-1] in eos):
        with torch.no_grad():
            said.append(int(model(torch.tensor([[*ids, *said]])).logits[0, -1].argmax()))
    return said


@pytest.mark.parametrize("agree", [0, 2, 5])
def test_the_gate_reads_on_up_to_twice_the_answer_and_no_score_changes(agree: int) -> None:
    model = tiny_model("llama", seed=agree)
    prompts = with_answers(model, make_prompts(agree), agree)
    results = measure(model, prompts, reads_on=lambda prompt, produced: True)
    plain = measure(model, prompts)
    for prompt in prompts:
        result = results[prompt.trial_id]
        assert [*result.produced, *result.read_on] == greedy(model, prompt.input_ids, 2 * len(prompt.answer_ids))
        assert result.produced == plain[prompt.trial_id].produced
        assert plain[prompt.trial_id].read_on == ()
        for name, scores in result.scores.items():
            assert torch.equal(scores, plain[prompt.trial_id].scores[name])


def test_only_what_has_not_answered_is_read_on() -> None:
    model, prompts, asked = tiny_model("llama"), make_prompts(3), {}

    def reads_on(prompt, produced):  # type: ignore[no-untyped-def]
        asked[prompt.trial_id] = tuple(produced)
        return prompt.trial_id == "t1"

    results = measure(model, prompts, reads_on=reads_on)
    assert {trial for trial, result in results.items() if result.read_on} == {"t1"}
    assert asked == {trial: result.produced for trial, result in results.items()}


def test_an_end_token_ends_reading_on_too() -> None:
    model, prompts = tiny_model("llama"), make_prompts(4)
    said = greedy(model, prompts[0].input_ids, 10)
    late = next(t for t in said[5:] if t not in said[:5])
    result = measure(model, prompts, eos={late}, reads_on=lambda prompt, produced: True)["t0"]
    assert [*result.produced, *result.read_on] == said[: said.index(late) + 1]
    early = measure(model, prompts, eos={said[1]}, reads_on=lambda prompt, produced: True)["t0"]
    assert (list(early.produced), early.read_on) == (said[: said.index(said[1]) + 1], ())


def test_reading_on_ends_with_the_window() -> None:
    model, prompts = tiny_model("llama"), make_prompts(5, lengths=(40, 57))
    results = measure(model, prompts, window=60, reads_on=lambda prompt, produced: True)
    assert [len(results[t].read_on) for t in ("t0", "t1")] == [5, 0]  # 57 + 5 is at the window's end already


def test_published_steps_go_past_the_answer_and_past_end_tokens() -> None:
    model = tiny_model("llama")
    prompts = with_answers(model, make_prompts(6), 3)
    said = {prompt.trial_id: greedy(model, prompt.input_ids, 50) for prompt in prompts}
    profiler = Profiler(model, [PUBLISHED_RETRIEVAL], {said["t0"][1]}, reads_on=lambda prompt, produced: True)
    results = list(profiler.measure(prompts))
    model.set_attn_implementation("eager")
    for prompt, result in results:
        assert list(result.produced) == said[prompt.trial_id]
        assert result.read_on == ()
        target = Target(prompt.input_ids, prompt.answer_span, prompt.distractor_span)
        _, scores = oracle_trial(model, prompt.input_ids, target, 50, set(), "retrieval")
        torch.testing.assert_close(result.scores["retrieval"], torch.tensor(scores, dtype=torch.float64))


def test_published_steps_end_with_the_window() -> None:
    model, prompts = tiny_model("llama"), make_prompts(7)
    profiler = Profiler(model, [PUBLISHED_RETRIEVAL], set(), window=70)
    lengths = {prompt.trial_id: len(result.produced) for prompt, result in profiler.measure(prompts)}
    assert lengths == {"t0": 30, "t1": 13, "t2": 13, "t3": 6}


def test_published_steps_shorter_than_the_answer_end_there() -> None:
    model, prompts = tiny_model("llama"), make_prompts(8, lengths=(200,), answer=60)
    ((_, result),) = Profiler(model, [PUBLISHED_RETRIEVAL], set()).measure(with_answers(model, prompts, 60))
    assert list(result.produced) == greedy(model, prompts[0].input_ids, 50)


# -- keys and values in the host's memory ---------------------------------------------------------------------------


def test_a_prefix_on_the_host_gives_the_same_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=6)
    prompts = with_answers(model, make_prompts(seed=6), 3)
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set(), prefill_chunk=64)
    profiler.passes.on_host = True
    results = {prompt.trial_id: result for prompt, result in profiler.measure(prompts)}
    assert all(layer.on_host and layer.keys.device.type == "cpu" for layer in profiler.passes.cache.layers)
    wanted = measure(model, prompts, prefill_chunk=64)
    for trial, found in wanted.items():
        assert results[trial].produced == found.produced
        for name, table in found.scores.items():
            assert torch.equal(results[trial].scores[name], table)


def test_keys_and_values_move_to_the_host_where_the_smallest_pieces_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", seed=6)
    prompts = with_answers(model, make_prompts(seed=6, lengths=(700, 650)), 3)
    monkeypatch.setattr(Passes, "can_move_to_host", lambda self: not self.on_host)  # as on a GPU
    original = Passes.run

    def short_of_memory(self, ids, keep):  # type: ignore[no-untyped-def]
        if not self.on_host:
            raise torch.OutOfMemoryError("out of memory")
        return original(self, ids, keep)

    monkeypatch.setattr(Passes, "run", short_of_memory)
    profiler = Profiler(model, tuple(ESTIMATORS.values()), set(), prefill_chunk=1024)
    results = {prompt.trial_id: result for prompt, result in profiler.measure(prompts)}
    assert profiler.passes.on_host
    assert profiler.passes.chunk == 1024
    assert_equals_oracle(model, prompts, results)


def test_on_a_cpu_there_is_no_other_memory_to_move_to() -> None:
    assert not Passes(tiny_model("llama"), 8192).can_move_to_host()

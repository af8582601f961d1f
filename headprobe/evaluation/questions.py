"""Prompts for a compressed cache, of a fresh needle or your own, and their answers under several policies."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from headprobe.compression.budgets import check_budget
from headprobe.compression.decoding import Sampler
from headprobe.compression.generation import AnswerOptions, Generation, check_new_tokens, generate
from headprobe.compression.kv_cache_dtypes import AUTO, told_with
from headprobe.compression.many_answers import Asked, answer
from headprobe.compression.policies import CompressionPlan, Policy, check_ratio
from headprobe.compression.read_once import read_once
from headprobe.compression.session import check_serving, compress, make_plan, on_kv_heads
from headprobe.errors import NonFiniteError, OptionError
from headprobe.evaluation.known_scores import known_scores
from headprobe.events import PLAN, TRIAL, emit
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import exact_match, token_f1
from headprobe.probes.encoding import Template, encode, resolve_template, special_token_in, special_tokens
from headprobe.probes.needle import Needle
from headprobe.probes.prompt import Prompt
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.any_scores import AnyScores
from headprobe.stages import DECODE, PREFILL, move_seconds, stage

# Prompts for a compressed cache: a fresh needle in a haystack, or a text and a question of one's own.


@dataclass(frozen=True)
class Question:
    """A prompt as tokens. `context_tokens`: where the context ends and the question begins (None: no question apart);
    `needle`: the needle whose answer is expected, None for your own prompt; `source` names it in words."""

    input_ids: tuple[int, ...]
    context_tokens: int | None
    needle: Needle | None
    source: str

    @property
    def expected(self) -> str | None:
        """The right answer, where it is known."""
        return None if self.needle is None else self.needle.answer


def needle_question(
    loaded: LoadedModel,
    length: int | None = None,
    *,
    needles: str = "reasoning",
    haystack: str = "all",
    seed: int = 0,
    chat: bool = True,
) -> Question:
    """A needle in the middle of a haystack, `length` tokens with its answer (default: the model's window)."""
    longest = loaded.window if length is None else length
    options = ScoreOptions(
        needles=needles, haystack=haystack, lengths=(longest,), depths=3, needles_per_cell=1, seed=seed, chat=chat
    )
    prepared = prepare(loaded, options)
    middle = prepared.plan.trials()[1]
    prompt = next(p for p in prepared.needle_prompts if p.trial_id == middle.id)
    template = resolve_template(loaded.tokenizer, chat=chat)
    return Question(prompt.input_ids, context_end(loaded, prompt, template), middle.needle, f"needle {prompt.trial_id}")


def own_question(
    loaded: LoadedModel, text: str, question: str | None, *, chat: bool = False, new_tokens: int = 0, name: str = ""
) -> Question:
    """`text`, and `question` put behind it as the needle prompts do; without one `text` is the whole prompt.

    With `chat` both go through the tokenizer's chat template. Raises `OptionError` for a prompt that, with
    `new_tokens`, is longer than the model's window, for an empty question, and for special tokens in what a template
    is put around: a prompt that is rendered already goes without `question` and `chat`.
    """
    tokenizer = loaded.tokenizer
    if question is not None and not question.strip():
        raise OptionError(f"the question {question!r} is empty")
    if question is None and not chat:
        return _checked(loaded, Question(tuple(encode(tokenizer, text).ids), None, None, name), new_tokens)
    if chat and not tokenizer.chat_template:
        raise OptionError(f"{loaded.name} has no chat template: leave out --chat")
    token = special_token_in(f"{text}\n{question or ''}", special_tokens(tokenizer))
    if token is not None:
        asked = "--chat" if chat else "--question"
        raise OptionError(f"the prompt contains {token!r}, a special token of the tokenizer: leave out {asked}")
    template = resolve_template(tokenizer, chat=chat, advice="leave out --chat")
    if question is None:
        question = ""
        template = resolve_template(tokenizer, "{context}{question}", chat=True, advice="leave out --chat")
    encoded = encode(tokenizer, template.render(text, question), special=not template.chat)
    cut = encoded.tokens_within(len(template.head) + len(text))
    return _checked(loaded, Question(tuple(encoded.ids), cut if question else None, None, name), new_tokens)


def context_end(loaded: LoadedModel, prompt: Prompt, template: Template) -> int:
    """Tokens of a needle prompt up to where its context ends: what ends before the words that lead to the question."""
    encoded = encode(loaded.tokenizer, prompt.text, special=not template.chat)
    begin = encoded.offsets[prompt.question_span.start][0]
    end = prompt.text.rindex(template.middle.strip() or template.middle, 0, begin + 1) if template.middle else begin
    return encoded.tokens_within(end)


def _checked(loaded: LoadedModel, question: Question, new_tokens: int) -> Question:
    tokens = len(question.input_ids)
    if tokens + new_tokens > loaded.window:
        raise OptionError(
            f"the prompt has {tokens} tokens, with {new_tokens} new ones more than the window of {loaded.window}"
        )
    if not tokens:
        raise OptionError("the prompt is empty")
    return question


# Answers of one model to one prompt, which is read once, under several policies with a cache each.


@dataclass(frozen=True)
class CompressionOptions:
    """`budget` or `ratio` as in `compress`; `scores`: a file for policies that need scores (None: found by itself).

    `kv_cache_dtypes`: how entries are held; with several every policy answers once for each. `sampler` draws the
    tokens; None takes the most likely.
    """

    budget: int | None = 256
    ratio: float | None = None
    scores: Path | None = None
    gqa: str = "mean"
    attention: str = "auto"
    prefill_chunk: int | None = None
    max_new_tokens: int = 64
    query_agnostic: bool = False
    sampler: Sampler | None = None
    kv_cache_dtypes: tuple[str, ...] = (AUTO,)

    def __post_init__(self) -> None:
        check_serving(self.attention, self.gqa, self.prefill_chunk, self.kv_cache_dtypes)
        check_new_tokens(self.max_new_tokens)
        if self.budget is not None:
            check_budget(self.budget)
        if self.ratio is not None:
            check_ratio(self.ratio)


@dataclass(frozen=True)
class CompressedAnswer:
    """One policy's answer. `correct` and `f1` are None where the right answer is not known; `remarks` are in words."""

    policy: Policy
    budget: int | None
    generation: Generation
    answer: str
    correct: bool | None
    f1: float | None
    layers: tuple[int, ...]
    kernel_reason: str
    scores_path: Path | None
    remarks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The policy, and behind it how entries were held where they were quantized."""
        return told_with(self.policy.name, self.generation.kv_cache_dtype)


def compressed_answers(
    loaded: LoadedModel,
    question: Question,
    policies: Sequence[Policy],
    options: CompressionOptions,
    on_answer: Callable[[CompressedAnswer], None] | None = None,
) -> list[CompressedAnswer]:
    """Let the model answer under each policy, one after another; several policies share one reading of the prompt.
    Behind a policy's answer come those on its quantized caches, as `options` has them.

    Raises what `compress` and `generate` raise.
    """
    if options.query_agnostic and question.context_tokens is None:
        raise OptionError("the context can be compressed alone only where the question is separate: give --question")
    found = [
        replace(_planned(loaded, question, policy, options), kv_cache_dtype=kv_cache_dtype)
        for policy in policies
        for kv_cache_dtype in options.kv_cache_dtypes
    ]
    answers = []
    emit(PLAN, work="compress", model=loaded.name, trials=len(found), done=0, tokens=len(question.input_ids))
    with closing(_generations(loaded, question, found, options)) as generations:
        for planned, (generation, reason) in zip(found, generations, strict=True):
            answers.append(_answer(loaded, question, planned, generation, reason))
            emit(TRIAL, trial=planned.name, tokens=len(question.input_ids))
            if on_answer:
                on_answer(answers[-1])
    return answers


@dataclass(frozen=True, eq=False)
class _Planned:
    """A policy's plan and the scores that were found for it; `remark`: what is not quite right with these.

    `read`: tokens of the prompt that are compressed.
    """

    plan: CompressionPlan
    scores: AnyScores | None
    remark: str | None
    read: int
    kv_cache_dtype: str = AUTO

    @property
    def name(self) -> str:
        """The policy and the number format."""
        return told_with(self.plan.policy.name, self.kv_cache_dtype)

    @property
    def budget(self) -> int | None:
        """Entries for each KV head; None where all are kept."""
        return None if self.plan.policy.keeps_all else self.plan.budget_for(self.read)


def _planned(loaded: LoadedModel, question: Question, policy: Policy, options: CompressionOptions) -> _Planned:
    scores, remark = known_scores(loaded, policy, options.scores)
    scores = None if scores is None else on_kv_heads(scores, loaded.geometry, options.gqa)
    budget, ratio = (None, None) if policy.keeps_all else (options.budget, options.ratio)
    plan = make_plan(loaded.model, policy, budget=budget, ratio=ratio, scores=scores)
    cut = question.context_tokens if options.query_agnostic else None
    return _Planned(plan, scores, remark, len(question.input_ids) if cut is None else cut)


def _generations(
    loaded: LoadedModel, question: Question, found: Sequence[_Planned], options: CompressionOptions
) -> Generator[tuple[Generation, str], None, None]:
    """What each policy gave, and why its attention kernel was taken."""
    eos = frozenset(eos_token_ids(loaded))
    if len(found) == 1:
        yield _alone(loaded, question, found[0], options, eos)
        return
    how = AnswerOptions(options.max_new_tokens, eos, options.sampler)
    ids, policies = question.input_ids, [planned.plan.policy for planned in found]
    with read_once(loaded.model, policies, attention=options.attention, prefill_chunk=options.prefill_chunk) as reader:
        with stage(PREFILL):
            reading = reader.read(ids[: found[0].read])
        for planned in found:
            with _named(planned), stage(DECODE):
                asked = Asked(how, ids[planned.read :], kv_cache_dtype=planned.kv_cache_dtype)
                (made,), _ = answer(reading, planned.plan, asked)
            move_seconds(made.ttft_s - reading.cost.seconds, DECODE, PREFILL)
            yield made, reader.kernel(planned.plan.policy, planned.kv_cache_dtype)[1]


def _alone(
    loaded: LoadedModel, question: Question, planned: _Planned, options: CompressionOptions, eos: frozenset[int]
) -> tuple[Generation, str]:
    """A single policy, which needs the full keys and values of one layer at a time."""
    plan = planned.plan
    with _named(planned), compress(
        loaded.model, plan.policy, budget=plan.budget, ratio=plan.ratio, scores=planned.scores,
        attention=options.attention, prefill_chunk=options.prefill_chunk, kv_cache_dtype=planned.kv_cache_dtype,
    ) as session:  # fmt: skip
        with stage(DECODE):
            made = generate(
                session, question.input_ids, max_new_tokens=options.max_new_tokens, eos_token_ids=eos,
                context_tokens=question.context_tokens if options.query_agnostic else None, sampler=options.sampler,
            )  # fmt: skip
        move_seconds(made.ttft_s, DECODE, PREFILL)
        return made, session.kernel_reason


@contextmanager
def _named(planned: _Planned) -> Iterator[None]:
    """Let an error of broken numbers name the policy."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{planned.name}: {error}") from error


def _answer(
    loaded: LoadedModel, question: Question, planned: _Planned, given: Generation, kernel_reason: str
) -> CompressedAnswer:
    policy, budget, read = planned.plan.policy, planned.budget, planned.read
    answer = str(loaded.tokenizer.decode(list(given.tokens), skip_special_tokens=True)).strip()
    needle = question.needle
    remarks = [planned.remark] if planned.remark else []
    if budget is not None and budget >= read:
        remarks.append(f"the prompt of {read} tokens fits into the budget: nothing is evicted")
    return CompressedAnswer(
        policy=policy,
        budget=budget,
        generation=given,
        answer=answer,
        correct=None if needle is None else exact_match(answer, needle.answer),
        f1=None if needle is None else token_f1(answer, needle.answer),
        layers=loaded.geometry.full_attention_layers,
        kernel_reason=kernel_reason,
        scores_path=None if planned.scores is None else planned.scores.path,
        remarks=tuple(remarks),
    )

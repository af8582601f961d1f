"""Answers of one model to one prompt, which is read once, under several policies with a cache each."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from headprobe.compression.budgets import check_budget
from headprobe.compression.generation import AnswerOptions, Generation, check_new_tokens, generate
from headprobe.compression.many_answers import Asked, answer
from headprobe.compression.plan import CompressionPlan, check_ratio
from headprobe.compression.policies import Policy
from headprobe.compression.read_once import read_once
from headprobe.compression.sampling import Sampler
from headprobe.compression.session import check_serving, compress, make_plan
from headprobe.errors import NonFiniteError, OptionError
from headprobe.evaluation.known_scores import known_scores
from headprobe.evaluation.questions import Question
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import exact_match, token_f1
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.any_scores import AnyScores


@dataclass(frozen=True)
class CompressionOptions:
    """`budget` or `ratio` as in `compress`; `scores`: a file for policies that need scores (None: found by itself).

    `sampler` draws the tokens; None takes the likeliest.
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

    def __post_init__(self) -> None:
        check_serving(self.attention, self.gqa, self.prefill_chunk)
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


def compressed_answers(
    loaded: LoadedModel,
    question: Question,
    policies: Sequence[Policy],
    options: CompressionOptions,
    on_answer: Callable[[CompressedAnswer], None] | None = None,
) -> list[CompressedAnswer]:
    """Let the model answer under each policy, one after another; several policies share one reading of the prompt.

    Raises what `compress` and `generate` raise.
    """
    if options.query_agnostic and question.context_tokens is None:
        raise OptionError("the context alone can only be compressed where a question stands apart: give --question")
    found = [_planned(loaded, question, policy, options) for policy in policies]
    answers = []
    with closing(_generations(loaded, question, found, options)) as generations:
        for planned, (generation, reason) in zip(found, generations, strict=True):
            answers.append(_answer(loaded, question, planned, generation, reason))
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

    @property
    def budget(self) -> int | None:
        """Entries for each KV head; None where all are kept."""
        return None if self.plan.policy.keeps_all else self.plan.budget_for(self.read)


def _planned(loaded: LoadedModel, question: Question, policy: Policy, options: CompressionOptions) -> _Planned:
    scores, remark = known_scores(loaded, policy, options.scores)
    budget, ratio = (None, None) if policy.keeps_all else (options.budget, options.ratio)
    plan = make_plan(loaded.model, policy, budget=budget, ratio=ratio, scores=scores, gqa=options.gqa)
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
    asked = AnswerOptions(options.max_new_tokens, eos, options.sampler)
    ids, policies = question.input_ids, [planned.plan.policy for planned in found]
    with read_once(loaded.model, policies, attention=options.attention, prefill_chunk=options.prefill_chunk) as reader:
        reading = reader.read(ids[: found[0].read])
        for planned in found:
            with _named(planned):
                (made,), _ = answer(reading, planned.plan, Asked(asked, ids[planned.read :]))
            yield made, reader.kernel(planned.plan.policy)[1]


def _alone(
    loaded: LoadedModel, question: Question, planned: _Planned, options: CompressionOptions, eos: frozenset[int]
) -> tuple[Generation, str]:
    """A single policy, which needs the full keys and values of one layer at a time."""
    plan = planned.plan
    with _named(planned), compress(
        loaded.model, plan.policy, budget=plan.budget, ratio=plan.ratio, scores=planned.scores, gqa=options.gqa,
        attention=options.attention, prefill_chunk=options.prefill_chunk,
    ) as session:  # fmt: skip
        made = generate(
            session, question.input_ids, max_new_tokens=options.max_new_tokens, eos_token_ids=eos,
            context_tokens=question.context_tokens if options.query_agnostic else None, sampler=options.sampler,
        )  # fmt: skip
        return made, session.kernel_reason


@contextmanager
def _named(planned: _Planned) -> Iterator[None]:
    """Let an error of broken numbers name the policy."""
    try:
        yield
    except NonFiniteError as error:
        raise NonFiniteError(f"{planned.plan.policy.name}: {error}") from error


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

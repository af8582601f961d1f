"""Answers of one model to one prompt under several policies, each on a cache of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headprobe.compression.budgets import check_budget
from headprobe.compression.generation import Generation, check_new_tokens, generate
from headprobe.compression.plan import check_ratio
from headprobe.compression.policies import Policy
from headprobe.compression.sampling import Sampler
from headprobe.compression.session import check_serving, compress
from headprobe.errors import NonFiniteError, OptionError
from headprobe.evaluation.known_scores import known_scores
from headprobe.evaluation.questions import Question
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import exact_match, token_f1
from headprobe.profiling.scoring import eos_token_ids


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
    """Let the model answer under each policy, one after another. Raises what `compress` and `generate` raise."""
    if options.query_agnostic and question.context_tokens is None:
        raise OptionError("the context alone can only be compressed where a question stands apart: give --question")
    answers = []
    for policy in policies:
        try:
            answer = _answer(loaded, question, policy, options)
        except NonFiniteError as error:
            raise NonFiniteError(f"{policy.name}: {error}") from error
        answers.append(answer)
        if on_answer:
            on_answer(answer)
    return answers


def _answer(loaded: LoadedModel, question: Question, policy: Policy, options: CompressionOptions) -> CompressedAnswer:
    scores, remark = known_scores(loaded, policy, options.scores)
    with compress(
        loaded.model, policy, budget=None if policy.keeps_all else options.budget,
        ratio=None if policy.keeps_all else options.ratio, scores=scores, gqa=options.gqa,
        attention=options.attention, prefill_chunk=options.prefill_chunk,
    ) as session:  # fmt: skip
        given = generate(
            session, question.input_ids, max_new_tokens=options.max_new_tokens, eos_token_ids=eos_token_ids(loaded),
            context_tokens=question.context_tokens if options.query_agnostic else None, sampler=options.sampler,
        )  # fmt: skip
        read = question.context_tokens if options.query_agnostic else len(question.input_ids)
        budget = None if policy.keeps_all else session.plan.budget_for(read or 0)
    answer = str(loaded.tokenizer.decode(list(given.tokens), skip_special_tokens=True)).strip()
    needle = question.needle
    evicted = policy.keeps_all or budget is None or budget < (read or 0)
    remarks = [remark] if remark else []
    remarks += [] if evicted else [f"the prompt of {read} tokens fits into the budget: nothing is evicted"]
    return CompressedAnswer(
        policy=policy,
        budget=budget,
        generation=given,
        answer=answer,
        correct=None if needle is None else exact_match(answer, needle.answer),
        f1=None if needle is None else token_f1(answer, needle.answer),
        layers=loaded.geometry.full_attention_layers,
        kernel_reason=session.kernel_reason,
        scores_path=None if scores is None else scores.path,
        remarks=tuple(remarks),
    )

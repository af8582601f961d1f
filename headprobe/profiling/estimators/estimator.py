"""How attention rows become a head's score.

Notation: a trial's context tokens `x`, the token span `A` of the correct answer in it with `N = len(A)`, and for every
step `t` (one produced token) the attention row `a[t, h, j]` of the query whose logits give that token. An estimator
first reduces each layer's rows to one number per head and row (`evidence`, taken while the model runs), then sums the
rows of the steps that were really taken (`trial_scores`).

Not every method looks at steps. `rows_of` says which rows one wants, and so which prompts it runs on: needles, or texts
that the model reads twice (`headprobe.probes.reading`), where nothing is asked and nothing answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from headprobe.attention.rows import AttentionRows
from headprobe.errors import OptionError
from headprobe.probes.answer import RULE
from headprobe.probes.reading import PASSAGE, RANDOM, Reading
from headprobe.profiling.steps import ANSWER_STEPS, step_rule
from headprobe.scores.head_scores import Method
from headprobe.scores.provenance import METHODS, STATED_AS, STEPS_RULE, MethodFacts
from headprobe.spans import Span

DECIDING_WORDS = "deciding_words"
GATE_METRICS = (DECIDING_WORDS, "f1", "rouge1_recall")
ANSWER, QUESTION = "answer", "question"
ROWS = {
    ANSWER: "of the steps that produce the answer",
    QUESTION: "of the question's tokens, and of a null question's in its place",
    RANDOM: "of all copies but the first in a sequence of random tokens that is repeated",
    PASSAGE: "of a text that is written out once more behind the request to repeat it",
}
NEEDLES = "needles"


@dataclass(frozen=True)
class Target:
    """What the rows of a trial are held against.

    `question_span` serves methods that look at rows of the question. In a text that is read twice `answer_span` is the
    first copy, which is looked back at, and `again_span` all that repeats it. `output` gives head outputs as logits.
    """

    input_ids: tuple[int, ...]
    answer_span: Span
    distractor_span: Span | None
    question_span: Span | None = None
    again_span: Span | None = None
    output: HeadOutput | None = None

    @classmethod
    def of(cls, reading: Reading) -> Target:
        """The target of a text that is read twice."""
        return cls(reading.input_ids, reading.first_span, None, again_span=reading.again_span)


class HeadOutput(Protocol):
    """How much the outputs of heads, before the layer's output projection, add to the logits of tokens."""

    def logits(self, outputs: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
        """`u_y . W_O[h] z` of outputs `z` `[L, H, T, d_v]` for the tokens `y`, one per step: `[L, H, T]`."""


@dataclass(frozen=True)
class Gate:
    """When a trial counts: `metric > threshold`.

    `deciding_words` is `headprobe.probes.answer.answered_share`. `f1` and `rouge1_recall` compare response and
    answer; with them a response that is closer to the distractor does not count either, unless `refuses_distractor` is
    False.
    """

    metric: str
    threshold: float = 0.5
    refuses_distractor: bool = True

    def __post_init__(self) -> None:
        if self.metric not in GATE_METRICS:
            raise OptionError(f"the gate's metric is {self.metric!r:.60}, need one of {', '.join(GATE_METRICS)}")

    def record(self) -> dict[str, Any]:
        """As a score file states it."""
        stated: dict[str, Any] = {"metric": self.metric, "threshold": self.threshold}
        if self.metric == DECIDING_WORDS:
            return stated | {"rule": RULE}
        if self.refuses_distractor:
            return stated | {"refuses": "responses closer to the distractor than to the answer"}
        return stated


ANSWERED_GATE, F1_GATE, ROUGE_GATE = (Gate(metric) for metric in GATE_METRICS)
PUBLISHED_GATE = Gate("rouge1_recall", refuses_distractor=False)


class Estimator(Protocol):
    """A method that scores heads, with all that is known of it; see `ESTIMATORS`."""

    @property
    def name(self) -> str:
        """What it is called on the command line and in files."""

    @property
    def formula(self) -> str:
        """Its formula in words."""

    @property
    def version(self) -> int:
        """Rises when results would change."""

    @property
    def facts(self) -> MethodFacts:
        """What a trial's scores can be; the checks of score files go by it."""

    @property
    def gate(self) -> Gate | None:
        """When a trial counts; None where every trial does, whatever the model says."""

    @property
    def default_needles(self) -> str:
        """The shipped needle set that suits it."""

    @property
    def needs_distractor(self) -> bool:
        """Whether every needle must have a distractor."""

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """One number (or vector) per head and row, `[H, R]` (or `[H, R, d]`), from one layer's rows."""

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """Scores `[L, H]` in float64 from the evidence `[L, H, steps]` of the steps that produced these tokens."""


class ReadingEstimator(Estimator, Protocol):
    """A method that looks at a text which is read twice: its rows come in blocks, whose evidence is merged."""

    @property
    def rows(self) -> str:
        """`RANDOM` or `PASSAGE`."""

    def merge(self, before: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """The evidence of all rows so far and of the next block, `[L, H, X]` each, in one."""


def rows_of(estimator: Estimator) -> str:
    """Which rows it wants, one of `ROWS`; a method that does not say wants those of the answer."""
    return str(getattr(estimator, "rows", ANSWER))


def prompts_of(estimator: Estimator) -> str:
    """The prompts that it runs on: `NEEDLES`, `RANDOM` or `PASSAGE`.

    >>> from headprobe.profiling.estimators import ESTIMATORS
    >>> [prompts_of(ESTIMATORS[name]) for name in ("r2", "qr", "induction", "reconstruction")]
    ['needles', 'needles', 'random', 'passage']
    """
    rows = rows_of(estimator)
    return NEEDLES if rows in (ANSWER, QUESTION) else rows


def method_block(estimator: Estimator) -> Method:
    """What a score file says of the estimator: its facts too, unless readers know them by its name."""
    gate, rows = estimator.gate, rows_of(estimator)
    parameters: dict[str, Any] = {}
    if rows == ANSWER:
        rule = step_rule([estimator])
        parameters["top"] = "N, the number of tokens of the correct answer"
        parameters["steps"] = rule.words
        if rule is not ANSWER_STEPS:
            parameters[STEPS_RULE] = rule.name
    else:
        parameters["rows"] = ROWS[rows]
    parameters["gate"] = None if gate is None else gate.record()
    if gate is None:
        parameters["counts"] = "every trial" + (": nothing is asked" if prompts_of(estimator) != NEEDLES else "")
    clipped = " after clipping at 0" if estimator.facts.can_be_negative else ""
    parameters["normalisation"] = "L1 over all heads" + clipped
    if estimator.name not in METHODS:
        parameters[STATED_AS] = estimator.facts.record()
    return Method(name=estimator.name, formula=estimator.formula, version=estimator.version, parameters=parameters)

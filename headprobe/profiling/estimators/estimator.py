"""How attention rows become a head's score.

Notation: a trial's context tokens `x`, the token span `A` of the correct answer in it with `N = len(A)`, and for every
step `t` (one produced token) the attention row `a[t, h, j]` of the query whose logits give that token. An estimator
first reduces each layer's rows to one number per head and row (`evidence`, taken while the model runs), then sums the
rows of the steps that were really taken (`trial_scores`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from headprobe.attention.rows import AttentionRows
from headprobe.errors import OptionError
from headprobe.probes.deciding import RULE
from headprobe.profiling.steps import ANSWER_STEPS, step_rule
from headprobe.scores.head_scores import Method
from headprobe.scores.provenance import METHODS, STATED_AS, STEPS_RULE, MethodFacts
from headprobe.spans import Span

DECIDING_WORDS = "deciding_words"
GATE_METRICS = (DECIDING_WORDS, "f1", "rouge1_recall")


@dataclass(frozen=True)
class Target:
    """What the rows of a trial are held against."""

    input_ids: tuple[int, ...]
    answer_span: Span
    distractor_span: Span | None


@dataclass(frozen=True)
class Gate:
    """When a trial counts: `metric > threshold`.

    `deciding_words` is `headprobe.probes.deciding.answered_share`. `f1` and `rouge1_recall` compare response and
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
    def gate(self) -> Gate:
        """When a trial counts."""

    @property
    def default_needles(self) -> str:
        """The shipped needle set that suits it."""

    @property
    def needs_distractor(self) -> bool:
        """Whether every needle must have a distractor."""

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """One number per head and row, `[H, R]`, from one layer's rows."""

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """Scores `[L, H]` in float64 from the evidence `[L, H, steps]` of the steps that produced these tokens."""


def method_block(estimator: Estimator) -> Method:
    """What a score file says of the estimator: its facts too, unless readers know them by its name."""
    rule = step_rule([estimator])
    parameters: dict[str, Any] = {
        "top": "N, the number of tokens of the correct answer",
        "steps": rule.words,
        "gate": estimator.gate.record(),
        "normalisation": "L1 over all heads" + (" after clipping at 0" if estimator.facts.can_be_negative else ""),
    }
    if rule is not ANSWER_STEPS:
        parameters[STEPS_RULE] = rule.name
    if estimator.name not in METHODS:
        parameters[STATED_AS] = estimator.facts.record()
    return Method(name=estimator.name, formula=estimator.formula, version=estimator.version, parameters=parameters)

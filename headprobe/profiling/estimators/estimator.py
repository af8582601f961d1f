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
from headprobe.scores.head_scores import Method
from headprobe.scores.provenance import METHODS, STATED_AS, MethodFacts
from headprobe.spans import Span

GATE_METRICS = ("f1", "rouge1_recall")


@dataclass(frozen=True)
class Target:
    """What the rows of a trial are held against."""

    input_ids: tuple[int, ...]
    answer_span: Span
    distractor_span: Span | None


@dataclass(frozen=True)
class Gate:
    """When a trial counts: `metric(response, answer) > threshold`, `metric` being `f1` or `rouge1_recall`, and the
    response is not closer to the distractor."""

    metric: str
    threshold: float = 0.5

    def __post_init__(self) -> None:
        if self.metric not in GATE_METRICS:
            raise OptionError(f"the gate's metric is {self.metric!r:.60}, need one of {', '.join(GATE_METRICS)}")


F1_GATE, ROUGE_GATE = Gate("f1"), Gate("rouge1_recall")


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
    parameters: dict[str, Any] = {
        "top": "N, the number of tokens of the correct answer",
        "steps": "at most as many as the gold answer has tokens; an end-of-sequence token ends them and counts",
        "gate": {
            "metric": estimator.gate.metric,
            "threshold": estimator.gate.threshold,
            "refuses": "responses closer to the distractor than to the answer",
        },
        "normalisation": "L1 over all heads" + (" after clipping at 0" if estimator.facts.can_be_negative else ""),
    }
    if estimator.name not in METHODS:
        parameters[STATED_AS] = estimator.facts.record()
    return Method(name=estimator.name, formula=estimator.formula, version=estimator.version, parameters=parameters)

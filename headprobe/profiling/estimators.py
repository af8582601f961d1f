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

from headprobe.errors import OptionError
from headprobe.profiling.attention_rows import AttentionRows, largest, mass_inside
from headprobe.scores.head_scores import Method
from headprobe.spans import Span


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


class Estimator(Protocol):
    """One rule of methods that score heads; see `ESTIMATORS`."""

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


class _Mass:
    """Shared by the estimators that add up attention mass: `(1/N) * sum over steps`."""

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The sum over the steps, divided by N: `[L, H, steps] -> [L, H]`."""
        return evidence.double().sum(-1) / len(target.answer_span)


@dataclass(frozen=True)
class R2(_Mass):
    """HeadKV-R2 (arXiv 2410.19258): attention mass of the top-N positions that lie in the correct answer."""

    name: str = "r2"
    formula: str = "(1/N) sum_t sum_{j in top-N(a_t) and A} a_tj"
    version: int = 1
    gate: Gate = Gate("f1")
    default_needles: str = "reasoning"
    needs_distractor: bool = False

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer."""
        return rows.top_mass(target.answer_span, len(target.answer_span))


@dataclass(frozen=True)
class Enhanced(R2):
    """HeadKV-ER (arXiv 2410.19258): the formula of `r2` on retrieval needles."""

    name: str = "enhanced"
    gate: Gate = Gate("rouge1_recall")
    default_needles: str = "retrieval"


@dataclass(frozen=True)
class Retrieval:
    """Retrieval heads (arXiv 2404.15574): steps whose argmax lies in the answer, on the very token produced."""

    name: str = "retrieval"
    formula: str = "(1/N) #{t: j* = argmax_j a_tj, j* in A, x_j* = token produced at t}"
    version: int = 1
    gate: Gate = Gate("rouge1_recall")
    default_needles: str = "retrieval"
    needs_distractor: bool = False

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """The token under the argmax where that lies in the answer, else -1."""
        best = rows.weights.argmax(-1)
        span = target.answer_span
        answer = torch.tensor(target.input_ids[span.start : span.end], device=best.device)
        inside = (best >= span.start) & (best < span.end)
        return torch.where(inside, answer[(best - span.start).clamp(0, len(span) - 1)], -1)

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The share of the answer's tokens that were hit: `[L, H, steps] -> [L, H]`."""
        hits = evidence == torch.tensor(produced, device=evidence.device)
        return hits.double().sum(-1) / len(target.answer_span)


@dataclass(frozen=True)
class Contrast(_Mass):
    """The `r2` mass on the correct answer minus the same mass on the distractor, in [-1, 1]."""

    name: str = "contrast"
    formula: str = "(1/N) sum_t (sum_{j in top-N(a_t) and A} a_tj - sum_{j in top-N(a_t) and D} a_tj)"
    version: int = 1
    gate: Gate = Gate("f1")
    default_needles: str = "reasoning"
    needs_distractor: bool = True

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer less that on the distractor. Raises `OptionError` where there is none."""
        if target.distractor_span is None:
            raise OptionError("method 'contrast' needs needles with a distractor, and this needle has none")
        top = len(target.answer_span)
        return rows.top_mass(target.answer_span, top) - rows.top_mass(target.distractor_span, top)


@dataclass(frozen=True)
class Value(_Mass):
    """`r2` on what a token really contributes: `a_j * |v_j|_1`, renormalised over the row (R2 x VATP)."""

    name: str = "value"
    formula: str = "(1/N) sum_t sum_{j in top-N(b_t) and A} b_tj, b_tj = a_tj |v_j|_1 / sum_k a_tk |v_k|_1"
    version: int = 1
    gate: Gate = Gate("f1")
    default_needles: str = "reasoning"
    needs_distractor: bool = False

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer after weighing by the values' norms."""
        norms = torch.linalg.vector_norm(rows.values, 1, -1, dtype=torch.float32)
        norms = norms.repeat_interleave(rows.weights.shape[0] // norms.shape[0], 0)
        weighted = rows.weights * norms[:, None]
        weighted = weighted / weighted.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return mass_inside(largest(weighted, len(target.answer_span)), target.answer_span)


ESTIMATORS: dict[str, Estimator] = {e.name: e for e in (R2(), Retrieval(), Enhanced(), Contrast(), Value())}


def estimators(names: str | Sequence[str]) -> tuple[Estimator, ...]:
    """The estimators called `names` (a sequence or comma-separated), in that order, each once.

    Raises `OptionError` for a name that does not exist.
    """
    listed = names.split(",") if isinstance(names, str) else list(names)
    listed = list(dict.fromkeys(n.strip() for n in listed if n.strip()))
    unknown = [n for n in listed if n not in ESTIMATORS]
    if unknown or not listed:
        raise OptionError(
            f"unknown method {', '.join(map(repr, unknown)) or repr('')}: choose from {', '.join(ESTIMATORS)}"
        )
    return tuple(ESTIMATORS[n] for n in listed)


def method_block(estimator: Estimator) -> Method:
    """What a score file says of the estimator."""
    parameters: dict[str, Any] = {
        "top": "N, the number of tokens of the correct answer",
        "steps": "at most as many as the gold answer has tokens; an end-of-sequence token ends them and counts",
        "gate": {
            "metric": estimator.gate.metric,
            "threshold": estimator.gate.threshold,
            "refuses": "responses closer to the distractor than to the answer",
        },
        "normalisation": "L1 over all heads" + (" after clipping at 0" if estimator.name == "contrast" else ""),
    }
    return Method(name=estimator.name, formula=estimator.formula, version=estimator.version, parameters=parameters)

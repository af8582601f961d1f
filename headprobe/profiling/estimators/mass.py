"""Methods that add up attention mass on the answer: `r2`, `enhanced`, `value`, and `contrast`, a difference of two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headprobe.attention.rows import AttentionRows, largest, mass_inside
from headprobe.errors import OptionError
from headprobe.profiling.estimators.estimator import F1_GATE, ROUGE_GATE, Gate, Target
from headprobe.scores.provenance import METHODS, MethodFacts


class Mass:
    """Shared by the estimators that add up attention mass: `(1/N) * sum over steps`."""

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The sum over the steps, divided by N: `[L, H, steps] -> [L, H]`."""
        return evidence.double().sum(-1) / len(target.answer_span)


@dataclass(frozen=True)
class R2(Mass):
    """HeadKV-R2 (arXiv 2410.19258): attention mass of the top-N positions that lie in the correct answer."""

    name: str = "r2"
    facts: MethodFacts = METHODS["r2"]
    formula: str = "(1/N) sum_t sum_{j in top-N(a_t) and A} a_tj"
    version: int = 1
    gate: Gate = F1_GATE
    default_needles: str = "reasoning"
    needs_distractor: bool = False

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer."""
        return rows.top_mass(target.answer_span, len(target.answer_span))


@dataclass(frozen=True)
class Enhanced(R2):
    """HeadKV-ER (arXiv 2410.19258): the formula of `r2` on retrieval needles."""

    name: str = "enhanced"
    facts: MethodFacts = METHODS["enhanced"]
    gate: Gate = ROUGE_GATE
    default_needles: str = "retrieval"


@dataclass(frozen=True)
class Contrast(Mass):
    """The `r2` mass on the correct answer minus the same mass on the distractor, in [-1, 1]."""

    name: str = "contrast"
    facts: MethodFacts = METHODS["contrast"]
    formula: str = "(1/N) sum_t (sum_{j in top-N(a_t) and A} a_tj - sum_{j in top-N(a_t) and D} a_tj)"
    version: int = 1
    gate: Gate = F1_GATE
    default_needles: str = "reasoning"
    needs_distractor: bool = True

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer less that on the distractor. Raises `OptionError` where there is none."""
        if target.distractor_span is None:
            raise OptionError("method 'contrast' needs needles with a distractor, and this needle has none")
        top = len(target.answer_span)
        return rows.top_mass(target.answer_span, top) - rows.top_mass(target.distractor_span, top)


@dataclass(frozen=True)
class Value(Mass):
    """`r2` on what a token really contributes: `a_j * |v_j|_1`, renormalised over the row (R2 x VATP)."""

    name: str = "value"
    facts: MethodFacts = METHODS["value"]
    formula: str = "(1/N) sum_t sum_{j in top-N(b_t) and A} b_tj, b_tj = a_tj |v_j|_1 / sum_k a_tk |v_k|_1"
    version: int = 1
    gate: Gate = F1_GATE
    default_needles: str = "reasoning"
    needs_distractor: bool = False

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer after weighing by the values' norms."""
        norms = torch.linalg.vector_norm(rows.values, 1, -1, dtype=torch.float32)
        norms = norms.repeat_interleave(rows.weights.shape[0] // norms.shape[0], 0)
        weighted = rows.weights * norms[:, None]
        weighted = weighted / weighted.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        return mass_inside(largest(weighted, len(target.answer_span)), target.answer_span)


R2_MASS, ENHANCED, CONTRAST, VALUE = R2(), Enhanced(), Contrast(), Value()

"""The method that looks from the question at the answer: `qr`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headprobe.attention.rows import AttentionRows
from headprobe.profiling.estimators.estimator import QUESTION, Gate, Target
from headprobe.scores.provenance import METHODS, MethodFacts


@dataclass(frozen=True)
class QuestionRows:
    """QRHead (arXiv 2506.09944): attention from the question to the answer, less that from a null question.

    Both are means over tokens: `q` those of the question, `q'` those of `N/A` in its place. Nothing has to be produced,
    so every trial counts.
    """

    name: str = "qr"
    facts: MethodFacts = METHODS["qr"]
    formula: str = (
        "(1/|q|) sum_{i in q} sum_{j in A} a_ij - (1/|q'|) sum_{i in q'} sum_{j in A} a_ij, q' a null question"
    )
    version: int = 1
    gate: Gate | None = None
    default_needles: str = "retrieval"
    needs_distractor: bool = False
    rows: str = QUESTION

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """Each row's mass on the answer."""
        return rows.weights[..., target.answer_span.start : target.answer_span.end].sum(-1)

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The mean over the question's rows, which come first, less that over the null question's."""
        assert target.question_span is not None
        asked = len(target.question_span)
        real, null = evidence[..., :asked].double(), evidence[..., asked:].double()
        return real.mean(-1) - null.mean(-1)


QUESTION_ROWS = QuestionRows()

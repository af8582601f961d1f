"""Methods that count steps whose attention peaks in the answer: `retrieval`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headprobe.attention.rows import AttentionRows
from headprobe.profiling.estimators.estimator import ROUGE_GATE, Gate, Target
from headprobe.scores.provenance import METHODS, MethodFacts


@dataclass(frozen=True)
class Retrieval:
    """Retrieval heads (arXiv 2404.15574): steps whose argmax lies in the answer, on the very token produced."""

    name: str = "retrieval"
    facts: MethodFacts = METHODS["retrieval"]
    formula: str = "(1/N) #{t: j* = argmax_j a_tj, j* in A, x_j* = token produced at t}"
    version: int = 1
    gate: Gate = ROUGE_GATE
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


RETRIEVAL = Retrieval()

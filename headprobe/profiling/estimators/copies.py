"""Methods without needles, on texts that the model reads twice: `induction`, `echo` and `reconstruction`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from headprobe.attention.rows import AttentionRows
from headprobe.probes.reading import PASSAGE, RANDOM
from headprobe.profiling.estimators.estimator import Gate, Target
from headprobe.scores.provenance import METHODS, MethodFacts


@dataclass(frozen=True)
class Echo:
    """RazorAttention (arXiv 2407.15891): attention on the earlier copies of a token, in random tokens repeated.

    `K` tokens are repeated; position `p` in a later copy has its earlier copies at `p - K`, `p - 2K`, ... The score is
    the mean over all rows behind the first copy. Nothing is asked, so every trial counts.
    """

    name: str = "echo"
    facts: MethodFacts = METHODS["echo"]
    formula: str = "mean over p behind the first copy of sum_{c >= 1} a_p,p-cK, K the length of a copy"
    version: int = 1
    gate: Gate | None = None
    default_needles: str = ""
    needs_distractor: bool = False
    rows: str = RANDOM
    shift: int = 0

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """The sum over the rows of their mass on earlier copies, `[H, 1]`."""
        period, first = len(target.answer_span), target.answer_span.start
        count, keys = rows.weights.shape[1:]
        at = torch.arange(keys - count, keys, device=rows.weights.device)
        total = torch.zeros(rows.weights.shape[0], dtype=torch.float64, device=rows.weights.device)
        for copies in range(1, (keys - 1 - first) // period + 1):
            copy = at - copies * period
            good = copy >= first
            chosen = rows.weights[:, good].gather(2, (copy[good] + self.shift).expand(len(total), -1)[..., None])
            total += chosen.double().sum((1, 2))
        return total[:, None]

    def merge(self, before: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """The sum of both blocks."""
        return before + block

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The mean over the rows: `[L, H, 1] -> [L, H]`."""
        assert target.again_span is not None
        return evidence.double().sum(-1) / len(target.again_span)


@dataclass(frozen=True)
class Induction(Echo):
    """RazorAttention, and Olsson et al. (arXiv 2209.11895): attention on the tokens after the earlier copies."""

    name: str = "induction"
    facts: MethodFacts = METHODS["induction"]
    formula: str = "mean over p behind the first copy of sum_{c >= 1} a_p,p-cK+1, K the length of a copy"
    shift: int = 1


@dataclass(frozen=True)
class Reconstruction:
    """KVzip (arXiv 2505.23416): the most attention that each entry of a text gets while the text is written out again.

    The maximum is over the rows of the second copy; a head's score is the mean over the entries of the first. KVzip
    takes the largest entry instead, which one sharp look decides: on SmolLM2-135M the best twelve heads then lie
    between 0.986 and 0.996, and half of all heads above 0.2. Nothing is asked, so every trial counts.
    """

    name: str = "reconstruction"
    facts: MethodFacts = METHODS["reconstruction"]
    formula: str = "(1/|C|) sum_{j in C} max_{p in R} a_pj, C the text and R its repetition"
    version: int = 1
    gate: Gate | None = None
    default_needles: str = ""
    needs_distractor: bool = False
    rows: str = PASSAGE

    def evidence(self, rows: AttentionRows, target: Target) -> torch.Tensor:
        """The largest weight on each entry of the text, `[H, |C|]`."""
        return rows.weights[..., target.answer_span.start : target.answer_span.end].amax(1)

    def merge(self, before: torch.Tensor, block: torch.Tensor) -> torch.Tensor:
        """The larger of both blocks."""
        return torch.maximum(before, block)

    def trial_scores(self, evidence: torch.Tensor, target: Target, produced: Sequence[int]) -> torch.Tensor:
        """The mean over the text: `[L, H, |C|] -> [L, H]`."""
        return evidence.double().mean(-1)


INDUCTION, ECHO, RECONSTRUCTION = Induction(), Echo(), Reconstruction()

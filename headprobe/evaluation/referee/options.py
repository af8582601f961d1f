"""What a referee judges, and on what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from headprobe.compression.budgets import check_budget
from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import DEFAULT_NEEDLES, MOST_DRAWS, KnockoutOptions
from headprobe.evaluation.knockout.head_orders import MOST_STEPS
from headprobe.evaluation.knockout.switched_off import MASK
from headprobe.probes.plan import check_number
from headprobe.profiling.estimators import ESTIMATORS, estimators
from headprobe.profiling.job import ScoreOptions
from headprobe.scores.any_scores import check_gqa

MOST_HEADS = 10_000


@dataclass(frozen=True)
class RefereeOptions:
    """What is to be judged, and on what.

    `detectors`: methods (all of ours); `length` of all prompts in tokens (None: 1024, or the window where that is
    smaller); `trials`: prompts per detector, at most; `prompts`: fresh needles that are asked with heads taken out and
    on budgets; `heads`: how many heads are taken out; `draws`: random orders beside each detector's; `budgets`: mean
    entries per KV head; `needles`: a set for everything (None: each detector's own, and `retrieval` to be asked);
    `batch`: head sets that go through a prompt together (None: as many as fit, at most 16).
    """

    detectors: tuple[str, ...] = field(default_factory=lambda: tuple(n for n in ESTIMATORS if n in ESTIMATORS.ours))
    length: int | None = None
    trials: int = 20
    prompts: int = 10
    heads: tuple[int, ...] = (1, 2, 4, 8, 16)
    draws: int = 5
    budgets: tuple[int, ...] = (64,)
    needles: str | None = None
    haystack: str = "all"
    seed: int = 0
    chat: bool = True
    gqa: str = "mean"
    batch: int | None = None

    def __post_init__(self) -> None:
        estimators(self.detectors)
        for name in ("trials", "prompts", "draws"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, need at least 1")
        check_number(self.draws, "draws", MOST_DRAWS)
        if not self.heads or min(self.heads) < 1 or max(self.heads) > MOST_HEADS:
            raise OptionError(f"heads are {', '.join(map(str, self.heads)) or 'none'}, need 1 to {MOST_HEADS} of each")
        if len(self.heads) > MOST_STEPS:
            raise OptionError(f"{len(self.heads)} numbers of heads, need 1 to {MOST_STEPS}")
        check_gqa(self.gqa)
        if not self.budgets:
            raise OptionError("no budget is given")
        for budget in self.budgets:
            check_budget(budget)
        self.asking(1)

    def scoring(self, methods: Sequence[str], length: int) -> ScoreOptions:
        """The trials of detectors that share a run."""
        return ScoreOptions(
            methods=tuple(methods), needles=self.needles, haystack=self.haystack, lengths=(length,), seed=self.seed,
            depths=max(1, (self.trials + 1) // 2), limit=self.trials, chat=self.chat,
        )  # fmt: skip

    def asking(self, length: int) -> KnockoutOptions:
        """The fresh prompts: another seed than that of the trials, one needle at each depth."""
        return KnockoutOptions(
            mode=MASK, draws=self.draws, needles=self.needles or DEFAULT_NEEDLES, lengths=(length,),
            depths=self.prompts, needles_per_cell=1, haystack=self.haystack, seed=self.seed + 1, chat=self.chat,
            batch=self.batch,
        )  # fmt: skip

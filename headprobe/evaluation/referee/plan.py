"""All that a referee is to run, checked before the model runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headprobe.compression.budgets import check_budget
from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import (
    DEFAULT_LENGTH,
    DEFAULT_NEEDLES,
    GATE,
    MOST_DRAWS,
    KnockoutBench,
    KnockoutOptions,
)
from headprobe.evaluation.knockout.checks import RecordCheck, check_heads, check_model
from headprobe.evaluation.knockout.head_orders import MOST_STEPS
from headprobe.evaluation.knockout.switched_off import MASK
from headprobe.models.loading import LoadedModel
from headprobe.probes.plan import check_number
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import ESTIMATORS, estimators
from headprobe.profiling.estimators.estimator import NEEDLES, prompts_of, rows_of
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.profiling.journal import Check
from headprobe.profiling.record_check import field as needed
from headprobe.profiling.record_check import number, text
from headprobe.scores.any_scores import AnyScores, check_gqa, read_any

Given = Mapping[str, AnyScores]  # by detector


def read_given(paths: Sequence[Path], detectors: Sequence[str], model: str) -> dict[str, AnyScores]:
    """The scores of each file, by its method.

    Before a model loads: raises `OptionError` for a file that is not in headprobe's own form (no other says whose
    weights it is of), of a method that is not judged, a second one of the same method, or of a model of another shape;
    and as `read_any`, `geometry_of`.
    """
    given: dict[str, AnyScores] = {}
    for path in paths:
        scores = read_any(path)
        if scores.native is None or scores.method is None:
            raise OptionError(
                f"--scores {path} is of format {scores.format}, which does not say whose weights it is of: `headprobe "
                "scores convert` brings it into headprobe's form"
            )
        if scores.method not in detectors:
            raise OptionError(
                f"--scores {path} holds scores of {scores.method!r:.60}, which is not judged: --detectors names "
                f"{', '.join(detectors)}"
            )
        if scores.method in given:
            raise OptionError(f"--scores {given[scores.method].path} and {path} both hold scores of {scores.method}")
        given[scores.method] = scores
    for scores in given.values():
        check_heads(scores, KnockoutOptions(), model)
    return given


def given_notes(given: Given) -> list[str]:
    """In words which files are of another version of their method than today's."""
    notes = []
    for name, scores in given.items():
        now, then = ESTIMATORS[name].version, None if scores.native is None else scores.native.method.version
        if then != now:
            notes.append(f"{scores.path} is of version {then} of {name}, today's is {now}")
    return notes


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


@dataclass(frozen=True, eq=False)
class RefereePlan:
    """All that is to run: `jobs` of detectors that share a run, `bench` with the prompts to be asked, `given` scores,
    and `counts`: how many heads are taken out, rising."""

    options: RefereeOptions
    length: int
    jobs: tuple[ScoreJob, ...]
    bench: KnockoutBench
    counts: tuple[int, ...]
    given: Given

    @classmethod
    def build(cls, loaded: LoadedModel, options: RefereeOptions, given: Given | None = None) -> RefereePlan:
        """Everything that can be refused is, before the model runs. `given`: scores by detector that are taken as they
        are. Raises as `prepare`, and `OptionError` (heads, scores of another model)."""
        known = dict(given or {})
        for scores in known.values():
            check_model(scores, loaded)
        layers, heads = loaded.geometry.shape
        if max(options.heads) >= layers * heads:
            raise OptionError(f"{max(options.heads)} heads cannot be taken out, the model has {layers * heads}")
        length = min(DEFAULT_LENGTH, loaded.window) if options.length is None else options.length
        groups: dict[tuple[str, str], list[str]] = {}
        for estimator in estimators(options.detectors):
            own = estimator.default_needles if options.needles is None else options.needles
            key = rows_of(estimator), own if prompts_of(estimator) == NEEDLES else ""
            if estimator.name not in known:
                groups.setdefault(key, []).append(estimator.name)
        jobs = []
        for (_, needles), methods in groups.items():
            scoring = options.scoring(methods, length)
            jobs.append(prepare(loaded, scoring if needles else _without_needles(scoring)))
        bench = KnockoutBench.build(loaded, options.asking(length), with_texts=False)
        return cls(options, length, tuple(jobs), bench, tuple(sorted(set(options.heads))), known)

    @property
    def asked(self) -> tuple[Prompt, ...]:
        """The fresh prompts."""
        return self.bench.prompts

    def describe(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides the result: a journal belongs to exactly this."""
        asked = self.bench.job.description(loaded)
        return {
            "evaluation": "referee",
            "detectors": [job.description(loaded) for job in self.jobs],
            "given": {name: scores.sha256 for name, scores in self.given.items()},
            "asked": asked["plan"],
            "prompts_sha256": asked["prompts_sha256"],
            "model": asked["model"],
            "gate": GATE.record(),
            "batch": self.bench.batch,
            "heads": list(self.counts),
            "draws": self.options.draws,
            "budgets": list(self.options.budgets),
            "gqa": self.options.gqa,
        }

    def check(self) -> Check:
        """What a part in the journal must be."""
        whole = RecordCheck(self.bench, ())
        asked = {prompt.trial_id for prompt in self.asked}

        def check(record: Mapping[str, Any]) -> None:
            kind, _, rest = record["trial"].partition("|")
            if kind == "run":
                _check_run(record)
            elif kind == "budgets":
                _check_budgets(record, rest in asked)
            else:
                whole(record)

        return check


def _check_run(record: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a run of detectors, read back from a journal, that is none."""
    if needed(record, "seconds") is not None:
        number(record, "seconds")
    for name in ("unanswered", "sha256"):
        found = needed(record, name)
        if not isinstance(found, dict):
            raise ValueError(f"its {name} is {found!r:.60}, need an object")
        for detector in found:
            text(found, detector)


def _check_budgets(record: Mapping[str, Any], is_asked: bool) -> None:
    answered = needed(record, "answered")
    if not is_asked:
        raise ValueError("the run has no such prompt")
    if not isinstance(answered, dict) or not all(type(each) is bool for each in answered.values()):
        raise ValueError(f"its answered is {answered!r:.60}, need an object of true and false")


def _without_needles(options: ScoreOptions) -> ScoreOptions:
    return ScoreOptions(**{**vars(options), "needles": None})

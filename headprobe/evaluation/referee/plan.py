"""All that a referee is to run, checked before the model runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import DEFAULT_LENGTH, GATE, KnockoutBench
from headprobe.evaluation.knockout.checks import RecordCheck, check_model
from headprobe.evaluation.referee.given import Given
from headprobe.evaluation.referee.options import RefereeOptions
from headprobe.models.loading import LoadedModel
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import estimators
from headprobe.profiling.estimators.estimator import NEEDLES, prompts_of, rows_of
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.profiling.journal import Check
from headprobe.profiling.record_check import field as needed
from headprobe.profiling.record_check import number, text


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

"""A referee for detectors: each scores one model's heads, then the heads show whether the answers need them.

Everything that takes long (the whole model's answers, a run of detectors, answers without some heads, answers on
budgets) is written down as soon as it is there, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from headprobe.errors import NoPassingTrialError, ResumeError
from headprobe.evaluation.knockout.bench import Record
from headprobe.evaluation.knockout.switched_off import HeadSet
from headprobe.evaluation.knockout.verdict import KnockoutCurve, knockout_curves
from headprobe.evaluation.referee.budgets import answers_on_budgets, budget_trials
from headprobe.evaluation.referee.curves import Curve, random_orders
from headprobe.evaluation.referee.plan import RefereePlan
from headprobe.evaluation.referee.result import EVEN, NOISE, RefereeFolder, RefereeResult, Verdict, recall_at
from headprobe.events import PLAN, TRIAL, emit
from headprobe.models.catalog import bundled_model_folder, planted_heads, short_name
from headprobe.models.loading import LoadedModel
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import estimators
from headprobe.profiling.job import ScoreJob
from headprobe.profiling.journal import Journal
from headprobe.profiling.preflight import journal_path
from headprobe.profiling.run import run
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.head_scores import Head

Shares = dict[str, dict[int, float]]  # by name and budget


@dataclass(frozen=True)
class RefereeWatch:
    """Who is called while a referee runs: `on_part` with the name of each new part, `on_piece` with the pieces of the
    knockout that are done, and all there are; `on_cut` with a journal and how many damaged lines at its
    end have been dropped."""

    on_part: Callable[[str], None] | None = None
    on_piece: Callable[[int, int], None] | None = None
    on_cut: Callable[[Path, int], None] | None = None


@dataclass(eq=False)
class Referee:
    """Runs the parts of a plan that `journal`, and the journal of the knockout, do not hold; each once."""

    loaded: LoadedModel
    plan: RefereePlan
    folder: RefereeFolder
    journal: Journal
    watch: RefereeWatch = field(default_factory=RefereeWatch)

    def ask(self) -> tuple[Prompt, ...]:
        """The prompts that the model answers with all its heads: all else is of these.

        Raises `NoPassingTrialError` where there are none.
        """
        try:
            found = self.plan.bench.measure((), self.journal)
        except NoPassingTrialError as error:
            raise NoPassingTrialError(f"{error}: take easier --needles or a shorter --length") from None
        return found.prompts

    def run(self) -> RefereeResult:
        """All parts, and what they say. Raises as `ask`, and `ResumeError` for a score file that was changed."""
        plan, prompts = self.plan, self.ask()
        emit(
            PLAN, work="referee", model=self.loaded.name, detectors=list(plan.options.detectors), prompts=len(prompts),
            done=len(self.journal.records),
        )  # fmt: skip
        clusters = self.plan.bench.clusters(prompts)
        verdicts = [verdict for job in plan.jobs for verdict in self._scored(job)]
        verdicts += [_given(name, scores) for name, scores in plan.given.items()]
        order = [e.name for e in estimators(plan.options.detectors)]
        verdicts.sort(key=lambda verdict: order.index(verdict.name))
        curves = self._curves({v.name: v.order for v in verdicts if v.mean is not None}, clusters)
        left = self._left(prompts, {v.name: self._scores(v.name) for v in verdicts if v.mean is not None})
        return RefereeResult(
            model=short_name(self.loaded.name),
            facts=self._facts(),
            asked=len(plan.asked),
            answered=len(prompts),
            verdicts=tuple(v if v.mean is None else self._judged(v, curves[v.name], left) for v in verdicts),
            baselines={name: left[name] for name in (EVEN, NOISE) if name in left},
            needles=len(set(clusters)),
        )

    def _facts(self) -> dict[str, Any]:
        options = self.plan.options
        return {
            "dtype": self.loaded.dtype,
            "device": self.loaded.device.type,
            "length": self.plan.length,
            "trials": options.trials,
            "seed": options.seed,
            "asked_needles": self.plan.bench.job.plan.needles.name,
            "draws": options.draws,
        }

    def _tell(self, name: str) -> None:
        emit(TRIAL, trial=name)
        if self.watch.on_part is not None:
            self.watch.on_part(name)

    # -- scores -----------------------------------------------------------------------------------------------------

    def _scored(self, job: ScoreJob) -> list[Verdict]:
        """The verdicts of detectors that share a run, as far as scores go."""
        methods = [e.name for e in job.estimators]
        name = f"run|{'+'.join(methods)}"
        if name not in self.journal.records:
            self.journal.add({"trial": name, **self._score(job)})
            self._tell(name)
        part = self.journal.records[name]
        found = []
        for method in methods:
            reason = part["unanswered"].get(method)
            scores = None if reason is not None else self._unchanged(method, part["sha256"].get(method))
            native = None if scores is None else scores.native
            found.append(
                Verdict(
                    name=method,
                    needles=None if job.needles is None else job.needles.needles.name,
                    trials=len(job.prompts) if native is None else native.num_trials,
                    passed=0 if native is None else native.num_passed,
                    seconds=part["seconds"],
                    shares=tuple(other for other in methods if other != method),
                    mean=None if scores is None else scores.mean,
                    reason=reason,
                )
            )
        return found

    def _score(self, job: ScoreJob) -> dict[str, Any]:
        """Run detectors, or continue them; how long it took, who got no answer, and what the others' files are."""
        paths = {e.name: self.folder.scores(e.name) for e in job.estimators}
        resumes = journal_path(paths).exists()
        if not resumes:
            for path in paths.values():
                path.unlink(missing_ok=True)
        begin = time.perf_counter()
        try:
            unanswered = run(self.loaded, job, paths, resume=resumes, overwrite=True).unanswered
        except NoPassingTrialError as error:
            unanswered = {name: str(error) for name, path in paths.items() if not path.exists()}
        seconds = None if resumes else time.perf_counter() - begin
        written = {name: read_any(path).sha256 for name, path in paths.items() if name not in unanswered}
        return {"seconds": seconds, "unanswered": unanswered, "sha256": written}

    def _unchanged(self, method: str, sha256: str | None) -> AnyScores:
        """A score file of this run, which all that follows goes by."""
        scores = self._scores(method)
        if scores.sha256 != sha256:
            raise ResumeError(f"{scores.path} was changed since this run wrote it: start over with --overwrite")
        return scores

    def _scores(self, method: str) -> AnyScores:
        given = self.plan.given.get(method)
        return read_any(self.folder.scores(method)) if given is None else given

    # -- what the answers need --------------------------------------------------------------------------------------

    def _curves(self, orders: dict[str, list[Head]], clusters: Sequence[str]) -> dict[str, Curve]:
        """Each detector's curve. Their orders and the random ones of all go through the prompts in the same batches."""
        if not orders:
            return {}
        plan, width = self.plan, self.loaded.geometry.shape[1]
        most, draws = plan.counts[-1], plan.options.draws
        random = {name: random_orders(order[:most], width, draws) for name, order in orders.items()}
        every: dict[str, list[Head]] = dict(orders.items())
        every |= {f"{name}|{draw}": other for name, found in random.items() for draw, other in enumerate(found)}
        sets = [tuple(sorted(order[:k])) for order in every.values() for k in plan.counts]
        found = self._measured(every, sets)
        return {
            name: Curve.of(found[name], [found[f"{name}|{d}"] for d in range(len(random[name]))], clusters, len(orders))
            for name in orders
        }

    def _measured(self, orders: dict[str, list[Head]], sets: Sequence[HeadSet]) -> dict[str, KnockoutCurve]:
        bench = self.plan.bench
        with self.folder.knockout(bench, sets) as journal:
            if journal.was_cut and self.watch.on_cut is not None:
                self.watch.on_cut(journal.path, journal.dropped)
            for name in bench.records_due(()):
                if name not in journal.records:
                    journal.add(self.journal.records[name])
            due = bench.records_due(sets, journal.records)

            def count(record: Record) -> None:
                if self.watch.on_piece is not None:
                    self.watch.on_piece(sum(name in journal.records for name in due), len(due))

            return knockout_curves(bench, orders, self.plan.counts, journal, count)

    def _judged(self, verdict: Verdict, curve: Curve, left: Shares) -> Verdict:
        """A verdict with curve, budgets and recall."""
        known = self._known_heads()
        changes: dict[str, Any] = {
            "curve": curve,
            "budgets": left[verdict.name],
            "recall": recall_at(verdict.order, known, (len(known), 2 * len(known))) if known else None,
        }
        return Verdict(**{**vars(verdict), **changes})

    def _known_heads(self) -> list[Head]:
        is_bundled = Path(self.loaded.source) == bundled_model_folder()
        return list(planted_heads().copying) if is_bundled else []

    # -- what budgets keep ------------------------------------------------------------------------------------------

    def _left(self, prompts: Sequence[Prompt], scores: dict[str, AnyScores]) -> Shares:
        """The share of answers left on each budget of each detector, of budgets of one size, and by random scores."""
        trials = budget_trials(self.loaded, scores, self.plan.options)
        rows = []
        for prompt in prompts:
            name = f"budgets|{prompt.trial_id}"
            known = self.journal.records.get(name)
            if known is None or set(known["answered"]) != {trial.id for trial in trials}:
                answered = answers_on_budgets(self.plan.bench, prompt, trials, self.plan.options.seed)
                self.journal.add({"trial": name, "answered": answered})
                self._tell(name)
            rows.append(self.journal.records[name]["answered"])
        left: Shares = {}
        for trial in trials:
            left.setdefault(trial.name, {})[trial.budget] = sum(row[trial.id] for row in rows) / len(rows)
        return left


def _given(name: str, scores: AnyScores) -> Verdict:
    """The verdict on a score file that was there before, as far as scores go."""
    native = scores.native
    assert native is not None  # `read_given` takes no other
    needles = native.provenance.probes.get("needles")
    return Verdict(
        name=name,
        needles=needles.get("name") if isinstance(needles, dict) else None,
        trials=native.num_trials,
        passed=native.num_passed,
        seconds=None,
        shares=(),
        mean=scores.mean,
        file=scores.path.name,
    )

"""A referee for detectors: each scores one model's heads, then the heads show whether the answers need them.

Every part that takes long (a run of detectors, the answers without some heads, the answers on one budget) is written
down as soon as it is there, so that a killed run goes on where it stopped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from headprobe.compression.budgets import check_budget
from headprobe.compression.policies import make_policy
from headprobe.compression.session import on_kv_heads
from headprobe.errors import DeviceMemoryError, NoPassingTrialError, OptionError
from headprobe.evaluation.knockout.hidden import answers_without
from headprobe.evaluation.known_scores import with_recommended_window
from headprobe.evaluation.needle_trial import GridTrial, run_trials
from headprobe.evaluation.referee_result import (
    EVEN,
    NOISE,
    CurveFunction,
    Head,
    RefereeResult,
    Verdict,
    knockout_curve,
    recall_at,
)
from headprobe.evaluation.trials import Running
from headprobe.evaluation.variants import RANDOM, REAL, Variant
from headprobe.events import PLAN, TRIAL, emit
from headprobe.models.catalog import bundled_model_folder, planted_heads, short_name
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import chosen_sentence, rouge1_recall
from headprobe.probes.needle import Needle
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import ESTIMATORS, estimators
from headprobe.profiling.estimators.estimator import NEEDLES, ROUGE_GATE, prompts_of, rows_of
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.profiling.journal import Journal, check_journal, number, text
from headprobe.profiling.journal import field as needed
from headprobe.profiling.preflight import journal_path
from headprobe.profiling.run import run
from headprobe.profiling.scoring import eos_token_ids, passed
from headprobe.scores.any_scores import AnyScores, check_gqa, read_any
from headprobe.scores.files import check_place, refuse_one_place
from headprobe.stages import DECODE, stage

PARTS, RESULT, TABLE, PICTURE = "parts.jsonl", "referee.json", "referee.md", "referee.png"
SCORES = "scores"
DEFAULT_LENGTH = 1024
MOST_HEADS = 10_000


@dataclass(frozen=True)
class RefereeOptions:
    """What is to be judged, and on what.

    `detectors`: methods (all of ours); `length` of all prompts in tokens (None: 1024, or the window where that is
    smaller); `trials`: prompts per detector, at most; `prompts`: fresh needles that are asked with heads taken out and
    on budgets; `heads`: how many heads are taken out; `draws`: random orders beside each detector's; `budgets`: mean
    entries per KV head; `needles`: a set for everything (None: each detector's own, and `retrieval` to be asked).
    """

    detectors: tuple[str, ...] = field(default_factory=lambda: tuple(n for n in ESTIMATORS if n in ESTIMATORS.ours))
    length: int | None = None
    trials: int = 20
    prompts: int = 10
    heads: tuple[int, ...] = (1, 2, 4, 8, 16)
    draws: int = 2
    budgets: tuple[int, ...] = (64,)
    needles: str | None = None
    haystack: str = "all"
    seed: int = 0
    chat: bool = True
    gqa: str = "mean"

    def __post_init__(self) -> None:
        estimators(self.detectors)
        for name in ("trials", "prompts", "draws"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}, need at least 1")
        if not self.heads or min(self.heads) < 1 or max(self.heads) > MOST_HEADS:
            raise OptionError(f"heads are {', '.join(map(str, self.heads)) or 'none'}, need 1 to {MOST_HEADS} of each")
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

    def asking(self, length: int) -> ScoreOptions:
        """The fresh prompts: another seed than that of the trials, one needle at each depth."""
        return ScoreOptions(
            methods=("retrieval",), needles=self.needles or "retrieval", haystack=self.haystack, lengths=(length,),
            depths=self.prompts, needles_per_cell=1, seed=self.seed + 1, chat=self.chat,
        )  # fmt: skip


@dataclass(frozen=True)
class RefereeFolder:
    """Where a referee writes: `parts.jsonl` is the run itself, beside the score files in `scores/`."""

    path: Path

    @classmethod
    def default(cls, model: str) -> RefereeFolder:
        """`evals/referee--<model>`."""
        return cls(Path("evals") / f"referee--{short_name(model).replace('/', '--')}")

    def file(self, name: str) -> Path:
        """One of its files."""
        return self.path / name

    def scores(self, method: str) -> Path:
        """A detector's score file."""
        return self.path / SCORES / f"{method}.json"

    def check(self, *, resume: bool, overwrite: bool, inputs: Mapping[str, Path | str | None]) -> None:
        """Refuse what would fail, or lose a file, before the long work begins. Raises as `GridFolder.check`."""
        parts = self.file(PARTS)
        derived = (RESULT, TABLE, PICTURE)
        refuse_one_place({"the output": parts} | {f"the output's {n}": self.file(n) for n in derived}, inputs)
        goes_on = check_journal(parts, resume=resume, overwrite=overwrite, holding="a run") and resume
        for name in derived:
            check_place(self.file(name), overwrite or goes_on)


@dataclass(frozen=True, eq=False)
class RefereePlan:
    """All that is to run: the detectors that share a run, and the prompts to be asked with their needles."""

    options: RefereeOptions
    length: int
    jobs: tuple[ScoreJob, ...]
    asked: tuple[tuple[Needle, Prompt], ...]
    counts: tuple[int, ...]
    prepared: ScoreJob

    @classmethod
    def build(cls, loaded: LoadedModel, options: RefereeOptions) -> RefereePlan:
        """Everything that can be refused is, before the model runs. Raises as `prepare`, and `OptionError`."""
        length = min(DEFAULT_LENGTH, loaded.window) if options.length is None else options.length
        groups: dict[tuple[str, str], list[str]] = {}
        for estimator in estimators(options.detectors):
            own = estimator.default_needles if options.needles is None else options.needles
            key = rows_of(estimator), own if prompts_of(estimator) == NEEDLES else ""
            groups.setdefault(key, []).append(estimator.name)
        jobs = []
        for (_, needles), methods in groups.items():
            scoring = options.scoring(methods, length)
            jobs.append(prepare(loaded, scoring if needles else _without_needles(scoring)))
        prepared = prepare(loaded, options.asking(length))
        needles_of = {spec.id: spec.needle for spec in prepared.plan.trials()}
        asked = tuple((needles_of[prompt.trial_id], prompt) for prompt in prepared.needle_prompts)
        layers, heads = loaded.geometry.shape
        if max(options.heads) >= layers * heads:
            raise OptionError(f"{max(options.heads)} heads cannot be taken out, the model has {layers * heads}")
        return cls(options, length, tuple(jobs), asked, tuple(sorted(set(options.heads))), prepared)

    def describe(self, loaded: LoadedModel) -> dict[str, Any]:
        """All that decides the result: a journal belongs to exactly this."""
        asked = self.prepared.description(loaded)
        return {
            "evaluation": "referee",
            "detectors": [job.description(loaded) for job in self.jobs],
            "asked": asked["plan"],
            "prompts_sha256": asked["prompts_sha256"],
            "model": asked["model"],
            "heads": list(self.counts),
            "draws": self.options.draws,
            "budgets": list(self.options.budgets),
            "gqa": self.options.gqa,
        }


def _without_needles(options: ScoreOptions) -> ScoreOptions:
    return ScoreOptions(**{**vars(options), "needles": None})


def check_part(record: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a part, read back from a journal, that is none."""
    if record["trial"].startswith("run|"):
        if needed(record, "seconds") is not None:
            number(record, "seconds")
        for name in needed(record, "unanswered"):
            text(record["unanswered"], name)
        return
    answered = needed(record, "answered")
    if not isinstance(answered, list) or not all(type(each) is bool for each in answered):
        raise ValueError(f"its answered is {answered!r:.60}, need a list of true and false")


@dataclass(eq=False)
class Referee:
    """Runs the parts of a plan that `journal` does not hold, each once; `on_part` is called with each new one."""

    loaded: LoadedModel
    plan: RefereePlan
    folder: RefereeFolder
    journal: Journal
    curve: CurveFunction = knockout_curve
    on_part: Callable[[str], None] | None = None
    _asked: tuple[tuple[Needle, Prompt], ...] = field(default=(), init=False)

    def run(self) -> RefereeResult:
        """All parts, and what they say. Raises `NoPassingTrialError` where the model answers none of the prompts."""
        options = self.plan.options
        emit(
            PLAN, work="referee", model=self.loaded.name, detectors=list(options.detectors),
            prompts=len(self.plan.asked), done=len(self.journal.records),
        )  # fmt: skip
        verdicts = [verdict for job in self.plan.jobs for verdict in self._scored(job)]
        everyone = self._part("hidden|none", lambda: self._answers(self.plan.asked, ()))
        self._asked = tuple(one for one, good in zip(self.plan.asked, everyone, strict=True) if good)
        if not self._asked:
            raise NoPassingTrialError(
                f"the model answered none of the {len(self.plan.asked)} prompts with all its heads: take easier "
                "--needles or a shorter --length"
            )
        order = [e.name for e in estimators(options.detectors)]
        verdicts.sort(key=lambda verdict: order.index(verdict.name))
        judged = tuple(verdict if verdict.mean is None else self._judged(verdict) for verdict in verdicts)
        return RefereeResult(
            model=self.loaded.name,
            facts={
                "dtype": self.loaded.dtype,
                "device": self.loaded.device.type,
                "length": self.plan.length,
                "trials": options.trials,
                "seed": options.seed,
                "asked_needles": self.plan.prepared.plan.needles.name,
                "draws": options.draws,
            },
            asked=len(self.plan.asked),
            answered=len(self._asked),
            verdicts=judged,
            baselines=self._baselines(),
        )

    def _part(self, name: str, work: Callable[[], list[bool]]) -> list[bool]:
        """The answers of one part: from the journal, else made and written down."""
        if name not in self.journal.records:
            self.journal.add({"trial": name, "answered": work()})
            self._tell(name)
        return list(self.journal.records[name]["answered"])

    def _tell(self, name: str) -> None:
        emit(TRIAL, trial=name)
        if self.on_part is not None:
            self.on_part(name)

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
            scores = None if reason is not None else read_any(self.folder.scores(method))
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
        """Run detectors, or continue them; how long it took, and who got no answer."""
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
        return {"seconds": seconds, "unanswered": unanswered}

    # -- what the answers need --------------------------------------------------------------------------------------

    def _judged(self, verdict: Verdict) -> Verdict:
        """A verdict with curve, budgets and recall."""
        options, shape = self.plan.options, self.loaded.geometry.shape
        curve = self.curve(verdict.order, shape[1], self.plan.counts, options.draws, self.answers_without)
        known = self._known_heads()
        scores = read_any(self.folder.scores(verdict.name))
        changes: dict[str, Any] = {
            "curve": curve,
            "budgets": {budget: self._left(verdict.name, REAL, scores, budget) for budget in options.budgets},
            "recall": recall_at(verdict.order, known, (len(known), 2 * len(known))) if known else None,
        }
        return Verdict(**{**vars(verdict), **changes})

    def _known_heads(self) -> list[Head]:
        is_bundled = Path(self.loaded.source) == bundled_model_folder()
        return list(planted_heads().copying) if is_bundled else []

    def answers_without(self, heads: Sequence[Head]) -> list[bool]:
        """For each prompt that the whole model answers, whether it does when these heads cannot see the needle."""
        if not heads:
            return [True] * len(self._asked)
        mark = sha256(" ".join(f"{layer}-{head}" for layer, head in sorted(heads)).encode()).hexdigest()[:16]
        return self._part(f"hidden|{len(heads)}|{mark}", lambda: self._answers(self._asked, heads))

    def _answers(self, asked: Sequence[tuple[Needle, Prompt]], heads: Sequence[Head]) -> list[bool]:
        with stage(DECODE):
            said = answers_without(self.loaded, [prompt for _, prompt in asked], heads)
        return [is_answer(said[prompt.trial_id], needle) for needle, prompt in asked]

    # -- what budgets keep ------------------------------------------------------------------------------------------

    def _baselines(self) -> dict[str, dict[int, float]]:
        """Budgets of one size for every head, and by random scores."""
        scored = [e.name for e in estimators(self.plan.options.detectors) if self.folder.scores(e.name).exists()]
        found = {EVEN: {b: self._left(EVEN, None, None, b) for b in self.plan.options.budgets}}
        if scored:
            scores = read_any(self.folder.scores(scored[0]))
            found[NOISE] = {b: self._left(NOISE, RANDOM, scores, b) for b in self.plan.options.budgets}
        return found

    def _left(self, name: str, source: str | None, scores: AnyScores | None, budget: int) -> float:
        answered = self._part(f"budget|{name}|{budget}", lambda: self._on_budget(source, scores, budget))
        return sum(answered) / len(answered)

    def _on_budget(self, source: str | None, scores: AnyScores | None, budget: int) -> list[bool]:
        policy = with_recommended_window(self.loaded, make_policy("snapkv" if scores is None else "headkv-r2"))
        options = self.plan.options
        settled = None if scores is None else on_kv_heads(scores, self.loaded.geometry, options.gqa)
        variant = Variant(policy, source, settled)
        specs = {spec.id: spec for spec in self.plan.prepared.plan.trials()}
        found = []
        for needle, prompt in self._asked:
            trial = GridTrial(specs[prompt.trial_id], prompt, variant, budget)
            running = Running(frozenset(eos_token_ids(self.loaded)), seed=options.seed)
            (_, row), *_ = run_trials(self.loaded, [trial], running)
            if row["error"] is not None:
                raise DeviceMemoryError(f"{prompt.trial_id} on {budget} entries: {row['error']}")
            found.append(is_answer(row["response"], needle))
        return found


def is_answer(response: str, needle: Needle) -> bool:
    """Whether a response answers, by ROUGE-1 recall above a half, and closer to the answer than to the distractor."""
    record = {"rouge1_recall": rouge1_recall(response, needle.answer), "chose": chosen_sentence(response, needle)}
    return passed(record, ROUGE_GATE)

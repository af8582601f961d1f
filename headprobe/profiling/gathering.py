"""From finished trials to scores: what a run knows beforehand (its frame), and what its trials gave.

The frame is all that score files state besides what is measured. A part of a run keeps it in the header of its journal,
so that journals become score files on a machine that does not have the model.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from headprobe._version import __version__
from headprobe.geometry import ModelGeometry
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel
from headprobe.models.placement import head_spread
from headprobe.profiling.estimators.estimator import (
    DECIDING_WORDS,
    NEEDLES,
    Estimator,
    Gate,
    method_block,
    prompts_of,
)
from headprobe.profiling.job import Record, ScoreJob, estimators_of
from headprobe.profiling.journal import Check
from headprobe.profiling.record_check import record_check
from headprobe.scores.head_scores import HeadScores, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance, TokenizerIdentity
from headprobe.stages import stage_record


@dataclass(frozen=True)
class ScoreRun:
    """What a run gave: scores by method name, the trials that did not fit on the device with the reason, and for
    methods without any passing trial what the model said instead. A shard gives its `records` instead of scores."""

    scores: dict[str, HeadScores]
    skipped: dict[str, str] = field(default_factory=dict)
    unanswered: dict[str, str] = field(default_factory=dict)
    records: tuple[Record, ...] = ()


class PlannedTrial(NamedTuple):
    """A trial before it runs: id, needle (or kind of text), length in tokens, depth in percent, and where the needle
    really is; None for a text without one."""

    id: str
    group: str
    length: int
    depth: float
    depth_reached: float | None


@dataclass(frozen=True, eq=False)
class ScoreFrame:
    """What the score files of a run state besides what is measured: `trials` and `provenance` by kind of prompts.

    `provenance` is as in the file, without the seconds of stages and without the trials that were skipped.
    """

    geometry: ModelGeometry
    estimators: tuple[Estimator, ...]
    steps: str
    trials: Mapping[str, tuple[PlannedTrial, ...]]
    provenance: Mapping[str, Provenance]
    with_trial_scores: bool = True

    @classmethod
    def of(cls, loaded: LoadedModel, job: ScoreJob, command: str | None = None) -> ScoreFrame:
        """That of a job, which `command` began."""
        reached = {prompt.trial_id: prompt.depth_reached for prompt in job.prompts}
        trials = {
            kind: tuple(
                PlannedTrial(spec.id, spec.group, spec.length, spec.depth, reached[spec.id])
                for spec in plan.trials() if spec.id in reached
            )
            for kind, plan in job.plans.items()
        }  # fmt: skip
        provenance = {kind: _provenance(loaded, job, kind, command) for kind in job.plans}
        given = job.options
        return cls(loaded.geometry, job.estimators, given.steps, trials, provenance, given.with_trial_scores)

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "geometry": asdict(self.geometry),
            "methods": [estimator.name for estimator in self.estimators],
            "steps": self.steps,
            "trials": {kind: [list(trial) for trial in trials] for kind, trials in self.trials.items()},
            "provenance": {kind: asdict(provenance) for kind, provenance in self.provenance.items()},
            "with_trial_scores": self.with_trial_scores,
        }

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ScoreFrame:
        """What `record` gave. Raises `ValueError` for what is no such thing, `OptionError` for a method that is not
        installed here."""
        try:
            geometry = dict(record["geometry"])
            found = cls(
                ModelGeometry(**{**geometry, "layer_types": tuple(geometry["layer_types"])}),
                estimators_of(tuple(record["methods"]), record["steps"]),
                record["steps"],
                {kind: tuple(PlannedTrial(*trial) for trial in trials) for kind, trials in record["trials"].items()},
                {kind: _provenance_of(parts) for kind, parts in record["provenance"].items()},
                record["with_trial_scores"],
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not what a scoring run knows beforehand ({error})") from None
        if any(prompts_of(estimator) not in found.trials for estimator in found.estimators):
            raise ValueError("not what a scoring run knows beforehand (a method without trials)")
        return found

    @property
    def trial_ids(self) -> list[str]:
        """All trials of the run."""
        return [trial.id for trials in self.trials.values() for trial in trials]

    @property
    def check(self) -> Check:
        """What a trial in the journal must be."""
        ids = {kind: {trial.id for trial in trials} for kind, trials in self.trials.items()}
        return record_check(ids, self.estimators, self.geometry.shape)


def gather(frame: ScoreFrame, records: Mapping[str, Record]) -> ScoreRun:
    """Finished records as `HeadScores`, one for each estimator that has a passing trial."""
    skipped = skipped_trials(records)
    scores, unanswered = {}, {}
    for estimator in frame.estimators:
        kind = prompts_of(estimator)
        ran = [trial for trial in frame.trials[kind] if trial.id not in skipped]
        trials = tuple(_trial(planned, records[planned.id], estimator) for planned in ran)
        if any(trial.passed for trial in trials):
            provenance = _completed(frame, kind, skipped)
            scores[estimator.name] = HeadScores(frame.geometry, method_block(estimator), trials, provenance)
        else:
            unanswered[estimator.name] = _no_answer(estimator, trials)
    return ScoreRun(scores, skipped, unanswered)


def skipped_trials(records: Mapping[str, Record]) -> dict[str, str]:
    """The trials that did not fit on the device, with the reason."""
    return {trial: record["skipped"] for trial, record in records.items() if "skipped" in record}


def passed(record: Record, gate: Gate | None) -> bool:
    """Whether a finished trial gets through the gate; see `Gate`. Without a gate every finished trial does."""
    if "skipped" in record or gate is None:
        return "skipped" not in record
    if not record[gate.metric] > gate.threshold:
        return False
    return gate.metric == DECIDING_WORDS or not gate.refuses_distractor or record["chose"] != "distractor"


def _trial(planned: PlannedTrial, record: Record, estimator: Estimator) -> Trial:
    answered = {name: record.get(name) for name in ("rouge1_recall", DECIDING_WORDS, "chose", "num_read")}
    answered["depth_reached"] = planned.depth_reached
    return Trial(
        id=planned.id,
        needle=planned.group,
        length=planned.length,
        depth=planned.depth,
        passed=passed(record, estimator.gate),
        f1=record["f1"],
        response=record["response"],
        num_steps=record["num_steps"],
        scores=np.array(record["scores"][estimator.name], dtype=np.float64),
        extra={"copied": record["copied"]} if prompts_of(estimator) != NEEDLES else answered,
    )


def _no_answer(estimator: Estimator, trials: Sequence[Trial]) -> str:
    if estimator.gate is None:
        return f"no trial of {estimator.name!r} fitted on the device, so no head can be scored"
    shown = "; ".join(f"{t.id}: {t.response[:80]!r}" for t in trials[:: max(1, len(trials) // 3)][:3])
    return (
        f"the model answered none of {len(trials)} trials (gate of {estimator.name!r}: {estimator.gate.metric} > "
        f"{estimator.gate.threshold}), so no head can be scored; it said: {shown}"
    )


def _completed(frame: ScoreFrame, kind: str, skipped: Mapping[str, str]) -> Provenance:
    """The provenance with what is known only in the end."""
    known, own = frame.provenance[kind], {trial.id for trial in frame.trials[kind]}
    probes = {**known.probes, "skipped": [{"id": i, "reason": reason} for i, reason in skipped.items() if i in own]}
    seconds = stage_record()
    environment = {**known.environment, **({"stages": seconds} if seconds else {})}
    return replace(known, probes=probes, environment=environment)


def _provenance(loaded: LoadedModel, job: ScoreJob, kind: str, command: str | None) -> Provenance:
    plan, prompts = job.plans[kind], job.of_kind(kind)
    probes = dict(plan.describe())
    if "haystack" in probes:
        repeats = max((p.haystack_repeats for p in prompts), default=0.0)
        probes["haystack"] = {**probes["haystack"], "repeats": repeats}
    probes["limit"] = len(prompts) if len(prompts) < plan.num_trials else None
    probes["digest"] = plan.digest
    template = loaded.chat_template_sha256 if plan.chat else None
    return Provenance(
        ModelIdentity(
            id=short_name(loaded.name),
            revision=loaded.revision,
            config_sha256=loaded.config_sha256,
            architecture=loaded.architecture,
            dtype=loaded.dtype,
            attn_implementation=loaded.attn_implementation,
            weights_sha256=loaded.weights_sha256,
            gguf=None if loaded.gguf is None else loaded.gguf.record(),
            quantization=loaded.quantization,
        ),
        TokenizerIdentity(short_name(loaded.name), loaded.tokenizer_sha256, template),
        probes,
        _environment(loaded, command),
    )


def _provenance_of(parts: Mapping[str, Any]) -> Provenance:
    model, tokenizer = ModelIdentity(**parts["model"]), TokenizerIdentity(**parts["tokenizer"])
    return Provenance(model, tokenizer, parts["probes"], parts["environment"])


def _environment(loaded: LoadedModel, command: str | None) -> dict[str, Any]:
    device = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else platform.machine()
    return {
        "headprobe": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": f"{loaded.device.type}: {device}",
        "command": command,
    } | spread_over(loaded.model)


def spread_over(model: Any) -> dict[str, Any]:
    """How the weights of a model are spread: over processes by heads, or over devices by layers; empty: neither."""
    heads, layers = head_spread(model), getattr(model, "hf_device_map", None) or {}
    devices = sorted({str(device) for device in layers.values()})
    found: dict[str, Any] = {} if heads is None else {"tensor_parallel": heads.size}
    return found | ({"device_map": devices} if len(devices) > 1 else {})

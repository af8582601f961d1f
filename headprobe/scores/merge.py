"""Several native score files as one: the same model and method, other trials."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.causal import CAUSAL, causal_results
from headprobe.scores.head_scores import Floats, HeadScores, ScoreTable, Trial, normalize
from headprobe.scores.provenance import Provenance

SAME_PROBES = ("needles.name", "needles.sha256", "haystack.name", "haystack.sha256", "template", "chat")
MAY_BE_UNKNOWN = ("revision", "config_sha256", "weights_sha256")
PARTS = "parts"
SEED = "seed"
ROUNDING = 0.01  # in scores of one trial that was measured twice


@dataclass(frozen=True, eq=False)
class Merged:
    """The joint scores, how many trials were in more than one file and used once, and other remarks."""

    scores: HeadScores
    num_repeated: int
    notes: tuple[str, ...]


def merge(files: Sequence[AnyScores]) -> Merged:
    """Join the trials of native files; means and deviations are those over all passing trials.

    All files must agree in model (id, revision, config, geometry, dtype), tokenizer, method (name, version,
    parameters), needles, haystack and template; lengths, depths, seeds and limits may differ. A trial that is in two
    files with the same seed and the same result is taken once. Trials of one name but of different seeds are different
    trials: the later one gets `#seed` behind its name, and every trial a field `seed`. Where a file lacks trial scores
    the joint file has none, and its table is weighted by the numbers of passing trials.

    Each file's probes, environment, date and id are kept under `parts` in the joint file; its own probes hold what all
    files agree in.

    Raises `OptionError` naming the first field that differs or the trial with two results, for fewer than two files,
    files of other formats, and the same file given twice.
    """
    scores = [_native(file) for file in files]
    if len(files) < 2:
        raise OptionError(f"{len(files)} score file given, need at least 2 to merge")
    _check_twice(files)
    for file, other in zip(files[1:], scores[1:], strict=True):
        _check_same(files[0], scores[0], file, other)
    whole = all(part.has_trial_scores for part in scores)
    trials, repeated = _joined_trials(files, scores, whole)
    first = scores[0]
    joint = HeadScores(
        geometry=first.geometry,
        method=first.method,
        trials=trials,
        provenance=_provenance(scores, len(trials)),
        stored=None if whole else _weighted(scores),
        extra=_shared_extra(scores) | {PARTS: _parts(files, scores)},
    )
    return Merged(joint, repeated, tuple(_notes(files, scores, whole)))


def _native(file: AnyScores) -> HeadScores:
    if file.native is None:
        raise OptionError(f"{file.path} is of format {file.format}: only native files can be merged; convert it first")
    return file.native


def _check_twice(files: Sequence[AnyScores]) -> None:
    seen: dict[str, Path] = {}
    for file in files:
        if file.sha256 in seen:
            raise OptionError(f"{file.path} has the same content as {seen[file.sha256]}")
        seen[file.sha256] = file.path


def _check_same(file: AnyScores, first: HeadScores, other_file: AnyScores, other: HeadScores) -> None:
    for (name, one), (_, two) in zip(_identity(first), _identity(other), strict=True):
        unknown = None in (one, two) and name.rpartition(".")[2] in MAY_BE_UNKNOWN
        if one != two and not unknown:
            raise OptionError(
                f"{other_file.path.name} does not belong to {file.path.name}: "
                f"{name} is {_shown(two)} there and {_shown(one)} here"
            )


def _identity(scores: HeadScores) -> Iterable[tuple[str, Any]]:
    model, tokenizer, method = scores.provenance.model, scores.provenance.tokenizer, scores.method
    for name in ("id", "revision", "config_sha256", "weights_sha256", "architecture", "dtype"):
        yield f"model.{name}", getattr(model, name)
    for name, value in vars(scores.geometry).items():
        yield f"model.{name}", value
    for name in ("sha256", "chat_template_sha256"):
        yield f"tokenizer.{name}", getattr(tokenizer, name, None)
    for name in ("name", "version"):
        yield f"method.{name}", getattr(method, name)
    yield "method.parameters", dict(method.parameters)
    for name in SAME_PROBES:
        yield f"probes.{name}", _at(scores.provenance.probes, name)


def _at(probes: Mapping[str, Any], name: str) -> Any:
    value: Any = probes
    for key in name.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _shown(value: Any) -> str:
    return "unknown" if value is None else f"{value!r:.60}"


def _joined_trials(
    files: Sequence[AnyScores], scores: Sequence[HeadScores], whole: bool
) -> tuple[tuple[Trial, ...], int]:
    """The trials of all files, each once, and how many were left out for that."""
    seeds = {part.provenance.probes.get(SEED) for part in scores}
    taken: dict[tuple[str, Any], tuple[Trial, Path]] = {}
    names: set[str] = set()
    repeated = 0
    for file, part in zip(files, scores, strict=True):
        for trial in part.trials:
            name, seed = _name_and_seed(trial, part)
            if (name, seed) in taken:
                _check_repeated(trial, file.path, *taken[name, seed], whole)
                repeated += 1
                continue
            kept = replace(trial, id=f"{name}#{seed}" if name in names else name)
            kept = kept if whole else replace(kept, scores=None)
            taken[name, seed] = (
                (kept if len(seeds) == 1 else replace(kept, extra={**kept.extra, SEED: seed})),
                file.path,
            )
            names.add(kept.id)
    return tuple(trial for trial, _ in taken.values()), repeated


def _name_and_seed(trial: Trial, part: HeadScores) -> tuple[str, Any]:
    """What distinguishes one trial from another: its name, without a seed that merging added, and its seed."""
    own = trial.extra.get(SEED)
    seed = own if isinstance(own, int) else part.provenance.probes.get(SEED)
    return trial.id.removesuffix(f"#{seed}"), seed


def _check_repeated(trial: Trial, path: Path, known: Trial, known_path: Path, whole: bool) -> None:
    where = f"trial {trial.id!r:.60} is in {known_path.name} and in {path.name}"
    if not whole:
        raise OptionError(f"{where}; without trial scores it cannot be taken out of the means")
    if not _is_same(trial, known):
        raise OptionError(f"{where}, with different results")


def _is_same(one: Trial, other: Trial) -> bool:
    """Whether two records are of one trial; scores may differ as far as another order of computation moves them."""
    told = [(t.needle, t.length, t.depth, t.passed, t.response, t.num_steps) for t in (one, other)]
    if told[0] != told[1] or (one.scores is None) != (other.scores is None):
        return False
    return one.scores is None or other.scores is None or bool(np.abs(one.scores - other.scores).max() <= ROUNDING)


def _weighted(scores: Sequence[HeadScores]) -> ScoreTable:
    """Mean and deviation over all passing trials from those of the parts."""
    weights = np.array([part.num_passed for part in scores], dtype=np.float64)
    means, deviations = (np.stack([getattr(part, name) for part in scores]) for name in ("mean", "std"))
    mean = _average(means, weights)
    variance = _average(deviations**2 + (means - mean) ** 2, weights)
    return ScoreTable(mean, np.sqrt(variance), normalize(mean))


def _average(tables: Floats, weights: Floats) -> Floats:
    return np.asarray(np.tensordot(weights / weights.sum(), tables, axes=1), dtype=np.float64)


def _provenance(scores: Sequence[HeadScores], num_trials: int) -> Provenance:
    first = scores[0].provenance
    models = [part.provenance.model for part in scores]
    known: dict[str, Any] = {n: next((v for m in models if (v := getattr(m, n))), None) for n in MAY_BE_UNKNOWN}
    attention = {m.attn_implementation for m in models}
    known["attn_implementation"] = attention.pop() if len(attention) == 1 else None
    model = replace(first.model, **known)
    probes = _joint_probes([dict(part.provenance.probes) for part in scores])
    return Provenance(model, first.tokenizer, probes, _equal([part.provenance.environment for part in scores]))


def _joint_probes(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all parts say alike, with lengths, depths and skipped trials of all; the rest is stated in the parts."""
    joint = {name: value for name, value in _equal(parts).items() if name != "limit"}
    for name in ("lengths", "depths"):
        joint[name] = sorted({value for part in parts for value in part.get(name, [])})
    repeats = [part["haystack"].get("repeats") for part in parts if isinstance(part.get("haystack"), dict)]
    if any(value is not None for value in repeats):
        told = [value for value in repeats if value is not None]
        joint["haystack"] = {**parts[0]["haystack"], "repeats": max(told)}
    skipped = [part["skipped"] for part in parts if isinstance(part.get("skipped"), list)]
    return joint | ({"skipped": [trial for trials in skipped for trial in trials]} if skipped else {})


def _equal(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields that all parts have with one value."""
    first, *others = parts
    return {name: value for name, value in first.items() if all(name in o and o[name] == value for o in others)}


def _shared_extra(scores: Sequence[HeadScores]) -> dict[str, Any]:
    own = (PARTS, CAUSAL)  # what switching heads off cost was measured by the order of one file
    return {name: value for name, value in _equal([part.extra for part in scores]).items() if name not in own}


def _parts(files: Sequence[AnyScores], scores: Sequence[HeadScores]) -> list[dict[str, Any]]:
    """A row for each file; a file that was merged itself gives its own rows."""
    rows: list[dict[str, Any]] = []
    for file, part in zip(files, scores, strict=True):
        inner = part.extra.get(PARTS)
        rows += inner if isinstance(inner, list) else [_part(file, part)]
    return [row for i, row in enumerate(rows) if row not in rows[:i]]


def _part(file: AnyScores, part: HeadScores) -> dict[str, Any]:
    source = part.provenance
    return {
        "id": json.loads(file.path.read_bytes())["id"],
        "created_at": source.created_at,
        "num_trials": part.num_trials,
        "num_passed": part.num_passed,
        "model": {"revision": source.model.revision, "attn_implementation": source.model.attn_implementation},
        "probes": dict(source.probes),
        "environment": dict(source.environment),
    }


def _notes(files: Sequence[AnyScores], scores: Sequence[HeadScores], whole: bool) -> Iterable[str]:
    if not whole:
        lacking = [f.path.name for f, part in zip(files, scores, strict=True) if not part.has_trial_scores]
        yield f"no trial scores in {', '.join(lacking)}, so none in the joint file"
    if any(causal_results(part) for part in scores):
        yield f"{CAUSAL} is left out: it was measured by the order of heads of one file, run knockout on the joint one"
    for name in ("revision", "attn_implementation"):
        values = list(dict.fromkeys(getattr(part.provenance.model, name) for part in scores))
        if len(values) > 1:
            yield f"model.{name} differs: {', '.join(map(_shown, values))}"

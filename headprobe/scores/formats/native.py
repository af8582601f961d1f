"""headprobe's own score file, as one format among the others, and what it makes of a file that states less."""

from __future__ import annotations

from typing import Any

from headprobe._version import __version__
from headprobe.scores.any_scores import AnyScores, fitting, query_heads
from headprobe.scores.formats.format import QUERY, RANKING_NOTE, Contents, Converted, Format, Source, StatedFacts
from headprobe.scores.formats.keyed import is_keyed
from headprobe.scores.head_scores import Floats, HeadScores, Method, ScoreTable, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance, facts_of
from headprobe.scores.score_file import score_file_bytes, scores_from
from headprobe.scores.summary import DistinctTrials

PLACEHOLDERS = {"needle": "unknown-N", "length": 1, "depth": 0.0, "f1": 0.0, "response": "", "num_steps": 0}


def is_native(value: Any) -> bool:
    """Whether a parsed JSON value states a schema, and is no table by key."""
    return isinstance(value, dict) and "schema" in value and not is_keyed(value)


def read_native(source: Source) -> Contents:
    """The scores with their geometry, trials and provenance. Raises `FileFormatError` as `read_score_file`."""
    scores = scores_from(source.json, source.path)
    is_ranking = scores.method.parameters.get("is_ranking") is True
    return Contents(
        heads=QUERY,
        mean=scores.mean,
        trial_scores=scores.passing_scores if scores.has_trial_scores else None,
        method=scores.method.name,
        model=scores.provenance.model.id,
        facts=facts_of(scores.method.name, scores.method.parameters),
        is_ranking=is_ranking,
        notes=(f"ranking-only: {RANKING_NOTE}",) if is_ranking else (),
        native=scores,
        geometry=scores.geometry,
    )


def to_native(scores: AnyScores, stated: StatedFacts) -> Converted:
    """A native file. What the format asks for and the source does not state gets a placeholder, named in `probes`."""
    if scores.native is not None:
        return Converted({"": score_file_bytes(scores.native)}, ())
    geometry = fitting(scores, stated)
    mean, trials = query_heads(scores, geometry)
    rows, table = _rows(mean, trials)
    probes: dict[str, Any] = {"converted_from": {"format": scores.format, "sha256": scores.sha256}}
    probes["placeholders"] = sorted(PLACEHOLDERS) + ([] if stated.knows_width else ["head_dim"])
    provenance = Provenance(
        ModelIdentity(stated.model or scores.model or "unknown"), None, probes, {"headprobe": __version__}
    )
    made = HeadScores(geometry, _method(scores), rows, provenance, table)
    told = [f"not in the source, placeholders are used: {', '.join(sorted(PLACEHOLDERS))} of the trials"]
    if not stated.knows_width:
        told.append(f"not in the source: the width of a head; {geometry.head_dim} is used")
    if trials is None:
        told.append("not in the source: the trials' scores; one trial without scores stands for all of them")
    if scores.heads == "kv":
        told.append(f"each of {geometry.group_size} query heads has the score of the KV head that they share")
    return Converted({"": score_file_bytes(made)}, tuple(told))


def _rows(mean: Floats, trials: Floats | None) -> tuple[tuple[Trial, ...], ScoreTable | None]:
    if trials is None:
        table = ScoreTable.of(mean[None])
        return (_trial(0, 0, None),), table
    group_of = {index: number for number, group in enumerate(DistinctTrials.of(trials).groups) for index in group}
    return tuple(_trial(index, group_of[index], scores) for index, scores in enumerate(trials)), None


def _trial(index: int, group: int, scores: Floats | None) -> Trial:
    """A trial of which only the scores are known; equal ones share a needle, as they are one measurement."""
    known = {"needle": f"unknown-{group + 1}", "passed": True, "scores": scores}
    return Trial(id=f"trial-{index + 1}", **(PLACEHOLDERS | known))  # type: ignore[arg-type]


def _method(scores: AnyScores) -> Method:
    parameters: dict[str, Any] = {"is_ranking": True} if scores.is_ranking else {}
    return Method(scores.method or "unknown", f"not stated; as in the {scores.format} file", 1, parameters)


NATIVE = Format(
    name="headprobe",
    about="JSON",
    family="headprobe",
    fits=lambda source: is_native(source.json),
    read=read_native,
    write=to_native,
)

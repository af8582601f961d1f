"""LOCOS: a JSON envelope `{meta, scores, trial_ids, confidence_intervals}` around scores by `layer-head` key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headprobe.scores.formats.format import Contents, FaultError, Format
from headprobe.scores.formats.keyed import read_keyed
from headprobe.scores.provenance import UNKNOWN

_MODEL_FIELDS = ("model", "model_name", "model_id", "model_name_or_path")
_METHOD_FIELDS = ("method", "detector", "scoring_method")


def is_locos(value: Any) -> bool:
    """Whether a parsed JSON value is such an envelope."""
    if not isinstance(value, dict) or "scores" not in value or "schema" in value:
        return False
    return "meta" in value or "trial_ids" in value


def read_locos(value: Mapping[str, Any]) -> Contents:
    """The table in the envelope; model and method where `meta` names them. Logit contributions know no bound.

    Raises `FaultError` as `read_keyed`, and where the number of `trial_ids` is not that of the trials.
    """
    scores, meta = value["scores"], value.get("meta")
    if not isinstance(scores, dict) or not scores:
        raise FaultError(
            "missing-heads", 'scores is not an object with a list for each head, as in {"13-18": [0.5, 0.25]}'
        )
    table = read_keyed(scores)
    ids, trials = value.get("trial_ids"), table.trial_scores
    notes = list(table.notes)
    if isinstance(ids, list) and trials is not None and len(ids) != len(trials):
        notes.append(f"unequal-trials: {len(ids)} trial_ids for {len(trials)} trials")
    named = meta if isinstance(meta, dict) else {}
    method = _first_text(named, _METHOD_FIELDS) or "locos"
    return replace(table, method=method, model=_first_text(named, _MODEL_FIELDS), facts=UNKNOWN, notes=tuple(notes))


def _first_text(fields: Mapping[str, Any], names: tuple[str, ...]) -> str | None:
    return next((value[:200] for name in names if isinstance(value := fields.get(name), str) and value), None)


LOCOS = Format(
    name="locos",
    about="JSON envelope",
    family="LOCOS envelope",
    fits=lambda source: is_locos(source.json),
    read=lambda source: read_locos(source.json),
)

"""The native score file `headprobe/1`: one JSON file, complete in itself, safe to open from a stranger."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from importlib.resources import files
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from headprobe.errors import FileFormatError, HeadprobeError, ModelError
from headprobe.geometry import ModelGeometry
from headprobe.scores import strict_json
from headprobe.scores.causal import CAUSAL, check_causal
from headprobe.scores.files import MAX_BYTES, file_bytes, refuse_existing, write_atomically
from headprobe.scores.head_scores import HeadScores, Method, ScoreTable, Trial, normalize
from headprobe.scores.provenance import ModelIdentity, Provenance, TokenizerIdentity, facts_of
from headprobe.scores.strict_json import MAX_HEADS, Fields, table

# Head scores as the JSON blocks of `headprobe/1`, and back.

SCHEMA = "headprobe/1"
MAJOR_VERSION = 1
TOLERANCE = 1e-9
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?(Z|\+00:00)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_TABLES = ("mean", "std", "normalized")


def to_payload(scores: HeadScores, with_trial_scores: bool) -> dict[str, Any]:
    """All blocks but `schema`, `id` and `created_at`, in the order of the file."""
    tokenizer = scores.provenance.tokenizer
    payload: dict[str, Any] = {
        "model": _model_block(scores),
        "tokenizer": None if tokenizer is None else _flat(tokenizer, "id", "sha256", "chat_template_sha256"),
        "method": _flat(scores.method, "name", "formula", "parameters", "version"),
        "probes": dict(scores.provenance.probes),
        "trials": [_trial_row(trial) for trial in scores.trials],
        "scores": _scores_block(scores),
    }
    if with_trial_scores and scores.has_trial_scores:
        payload["trial_scores"] = [None if t.scores is None else t.scores.tolist() for t in scores.trials]
    return payload | dict(scores.extra) | {"environment": dict(scores.provenance.environment)}


def from_payload(payload: Any) -> HeadScores:
    """The scores in a parsed file. Raises `ValueError` that names the field, its value and what was needed."""
    top = Fields(payload, "")
    for key in ("schema", "id"):
        top.has(key)
    model = top.block("model")
    geometry = _geometry(model)
    method, tokenizer = top.block("method"), top.block("tokenizer") if not _is_null(payload, "tokenizer", top) else None
    provenance = Provenance(
        model=_model(model),
        tokenizer=None if tokenizer is None else _tokenizer(tokenizer),
        probes=_probes(top.block("probes")),
        environment=top.get("environment", dict),
        created_at=_date(top.text("created_at")),
    )
    trials, stored = _trials(top, geometry), top.block("scores")
    check_causal(top)
    extra = top.rest() | ({CAUSAL: payload[CAUSAL]} if top.has(CAUSAL) else {})
    scores = HeadScores(geometry, _method(method), trials, provenance, _table(stored, geometry), extra)
    _check_counts(stored, scores)
    _check_table(scores)
    return scores


def _flat(source: Any, *names: str) -> dict[str, Any]:
    made = {name: getattr(source, name) for name in names}
    if "parameters" in made:
        made["parameters"] = dict(made["parameters"])
    return made | dict(source.extra)


def _model_block(scores: HeadScores) -> dict[str, Any]:
    geometry, model = scores.geometry, scores.provenance.model
    return {
        "id": model.id,
        "revision": model.revision,
        "config_sha256": model.config_sha256,
        "architecture": model.architecture,
        "num_hidden_layers": geometry.num_hidden_layers,
        "num_attention_heads": geometry.num_attention_heads,
        "num_key_value_heads": geometry.num_key_value_heads,
        "head_dim": geometry.head_dim,
        "layer_types": list(geometry.layer_types),
        "dtype": model.dtype,
        "attn_implementation": model.attn_implementation,
        **({} if model.weights_sha256 is None else {"weights_sha256": model.weights_sha256}),
        **({} if model.gguf is None else {"gguf": dict(model.gguf)}),
        **({} if model.quantization is None else {"quantization": dict(model.quantization)}),
    } | dict(model.extra)


def _trial_row(trial: Trial) -> dict[str, Any]:
    return _flat(trial, "id", "needle", "length", "depth", "passed", "f1", "response", "num_steps")


def _scores_block(scores: HeadScores) -> dict[str, Any]:
    tables = {name: getattr(scores.table, name).tolist() for name in _TABLES}
    counts = {"num_trials": scores.num_trials, "num_passed": scores.num_passed}
    return tables | counts | dict(scores.table.extra)


def _is_null(payload: dict[str, Any], key: str, fields: Fields) -> bool:
    return fields.has(key) and payload[key] is None


def _geometry(model: Fields) -> ModelGeometry:
    types = model.get("layer_types", list)
    if not all(isinstance(kind, str) for kind in types):
        raise ValueError("model.layer_types must hold texts only")
    names = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    numbers = {name: model.integer(name, 1) for name in names}
    try:
        return ModelGeometry(**numbers, layer_types=tuple(types))
    except ModelError as error:
        raise ValueError(f"model: {error}") from None


def _model(model: Fields) -> ModelIdentity:
    names = ("revision", "config_sha256", "architecture", "dtype", "attn_implementation", "weights_sha256")
    known = {name: model.optional_text(name) for name in names}
    gguf, quantization = (
        read(model.block(name)) if model.has(name) and model.everything()[name] is not None else None
        for name, read in (("gguf", _gguf), ("quantization", _quantization))
    )
    return ModelIdentity(id=model.text("id"), **known, gguf=gguf, quantization=quantization, extra=model.rest())


def _quantization(block: Fields) -> dict[str, Any]:
    block.text("quant_method")
    return block.everything()


def _gguf(block: Fields) -> dict[str, Any]:
    block.text("file")
    if not _SHA256.fullmatch(sha256 := block.text("sha256")):
        raise ValueError(f"{block.name('sha256')} is {sha256!r:.60}, need 64 hexadecimal digits")
    types = block.block("types")
    for name in types.everything():
        types.integer(name, 1)
    block.optional_text("packages")
    return block.everything()


def _tokenizer(block: Fields) -> TokenizerIdentity:
    known = {name: block.optional_text(name) for name in ("sha256", "chat_template_sha256")}
    return TokenizerIdentity(id=block.text("id"), **known, extra=block.rest())


def _method(block: Fields) -> Method:
    parameters, version = block.get("parameters", dict), block.integer("version", 1)
    facts_of(block.text("name"), parameters)
    return Method(block.text("name"), block.text("formula"), version, parameters, block.rest())


def _probes(block: Fields) -> dict[str, Any]:
    for name in ("needles", "haystack"):
        if block.has(name):
            part = block.block(name)
            part.text("name")
            part.optional_text("sha256")
            if part.has("repeats"):
                part.number("repeats", 0.0, 1e12)
    for name, most in (("lengths", 2.0**63), ("depths", 100.0)):
        if block.has(name):
            block.numbers(name, most)
    if block.has("seed"):
        block.integer("seed", -inf)
    return block.everything()


def _date(text: str) -> str:
    if not _DATE.fullmatch(text):
        raise ValueError(f"created_at is {text!r:.60}, need ISO 8601 in UTC like 2025-01-31T12:00:00Z")
    return text


def _trials(top: Fields, geometry: ModelGeometry) -> tuple[Trial, ...]:
    rows = top.get("trials", list)
    tables: list[Any] = top.get("trial_scores", list) if top.has("trial_scores") else [None] * len(rows)
    if len(tables) != len(rows):
        raise ValueError(f"trial_scores is an array of {len(tables)}, need one for each of {len(rows)} trials")
    pairs = zip(rows, tables, strict=True)
    return tuple(_trial(Fields(row, f"trials[{i}]"), scores, geometry, i) for i, (row, scores) in enumerate(pairs))


def _trial(row: Fields, scores: Any, geometry: ModelGeometry, index: int) -> Trial:
    return Trial(
        id=row.text("id"),
        needle=row.text("needle"),
        length=row.integer("length", 1),
        depth=row.number("depth", 0.0, 100.0),
        passed=row.flag("passed"),
        f1=row.number("f1", 0.0, 1.0),
        response=row.text("response"),
        num_steps=row.integer("num_steps"),
        scores=None if scores is None else table(scores, geometry.shape, f"trial_scores[{index}]"),
        extra=row.rest(),
    )


def _table(block: Fields, geometry: ModelGeometry) -> ScoreTable:
    tables = {name: block.table(name, geometry.shape) for name in _TABLES}
    if tables["mean"].size > MAX_HEADS:
        raise ValueError(f"the scores have {tables['mean'].size} heads, need at most {MAX_HEADS}")
    block.integer("num_trials")
    block.integer("num_passed", 1)
    return ScoreTable(**tables, extra=block.rest())


def _check_counts(block: Fields, scores: HeadScores) -> None:
    for name, counted in (("num_trials", scores.num_trials), ("num_passed", scores.num_passed)):
        if block.integer(name) != counted:
            raise ValueError(f"scores.{name} is {block.integer(name)}, the trials give {counted}")


def _check_table(scores: HeadScores) -> None:
    _check_follows("normalized", scores.normalized, normalize(scores.mean), "mean")
    if scores.has_trial_scores:
        expected = ScoreTable.of(scores.passing_scores)
        _check_follows("mean", scores.mean, expected.mean, "trial_scores")
        _check_follows("std", scores.std, expected.std, "trial_scores")
    for name in ("std", "normalized"):
        if (least := getattr(scores, name).min()) < 0:
            raise ValueError(f"scores.{name} holds {least}, need at least 0")


def _check_follows(name: str, stored: Any, expected: Any, source: str) -> None:
    wrong = np.argwhere(~np.isclose(stored, expected, rtol=TOLERANCE, atol=TOLERANCE))
    if len(wrong):
        layer, head = map(int, wrong[0])
        told, right = stored[layer, head], expected[layer, head]
        raise ValueError(f"scores.{name}[{layer}][{head}] is {told}, {source} gives {right}")


_OUTSIDE_ID = ("id", "created_at", "environment")


def write_score_file(
    path: Path | str, scores: HeadScores, overwrite: bool = False, with_trial_scores: bool = True
) -> Path:
    """Write `scores` atomically and return the path. The same scores give the same bytes apart from the fields
    `created_at` and `environment`.

    Raises `OutputExistsError` when the file exists and `overwrite` is false, `NoPassingTrialError` when there is
    no score to report, `NonFiniteError` for NaN or infinity, `FileFormatError` for a field that readers would refuse.
    """
    refuse_existing(path, overwrite)
    return write_atomically(path, score_file_bytes(scores, with_trial_scores), overwrite)


def score_file_bytes(scores: HeadScores, with_trial_scores: bool = True) -> bytes:
    """What `write_score_file` writes. Raises as it does."""
    blocks = to_payload(scores, with_trial_scores)
    created = scores.provenance.created_at or datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    payload = {"schema": SCHEMA, "id": "", "created_at": created} | blocks
    try:
        payload["id"] = _digest(payload)
        strict_json.digest(payload["environment"])
        from_payload(payload)
    except ValueError as error:
        raise FileFormatError(f"these scores cannot be written: {error}") from None
    return strict_json.layout(payload).encode("utf-8")


def read_score_file(path: Path | str, max_bytes: int = MAX_BYTES) -> HeadScores:
    """Read a native score file and check all of it: version, id, types, shapes, and that the tables fit together.

    Raises `FileFormatError` with the path, the line or field, and the reason, whatever the file holds.
    """
    return scores_from(strict_json.parse(file_bytes(path, max_bytes), path), path)


def scores_from(payload: Any, path: Path | str) -> HeadScores:
    """The scores in a parsed native file, checked as `read_score_file` does; `path` is for messages only."""
    try:
        _check_version(payload)
        strict_json.digest(payload)
        scores = from_payload(payload)
        _check_id(payload)
    except FileFormatError:
        raise
    except (ValueError, HeadprobeError) as error:
        raise FileFormatError(str(error), path) from None
    return scores


def holds(path: Path | str, scores: HeadScores, with_trial_scores: bool = True) -> bool:
    """Whether the file at `path` is what `write_score_file` would write, apart from date and environment."""
    try:
        payload = strict_json.parse(file_bytes(path), path)
    except FileFormatError:
        return False
    wanted = strict_json.parse(score_file_bytes(scores, with_trial_scores), path)["id"]
    return isinstance(payload, dict) and payload.get("id") == wanted


def load_scores(path: Path | str) -> HeadScores:
    """The head scores in a file; today of the native format only. Raises `FileFormatError`."""
    return read_score_file(path)


def newest_score_file(folder: Path | str = "scores") -> Path:
    """The `.json` file in `folder` that was changed last (for equal times, the last by name).

    Raises `FileFormatError` when there is none.
    """
    found = [file for file in Path(folder).glob("*.json") if file.is_file() and not file.name.startswith(".")]
    if not found:
        raise FileFormatError(f"no score file in {folder}/; `headprobe score` makes one")
    return max(found, key=lambda file: (file.stat().st_mtime_ns, file.name))


def schema_text() -> str:
    """The JSON Schema (2020-12) of the score file, as it lies beside this module, for printing."""
    return files("headprobe.scores").joinpath("score_file.schema.json").read_text(encoding="utf-8")


def score_file_schema() -> dict[str, Any]:
    """The schema, parsed.

    >>> score_file_schema()["properties"]["schema"]
    {'const': 'headprobe/1'}
    """
    schema: dict[str, Any] = json.loads(schema_text())
    return schema


def _digest(payload: dict[str, Any]) -> str:
    return strict_json.digest({key: value for key, value in payload.items() if key not in _OUTSIDE_ID})


def _check_version(payload: Any) -> None:
    schema = payload.get("schema") if isinstance(payload, dict) else None
    found = re.fullmatch(r"headprobe/([1-9]\d{0,3})", schema) if isinstance(schema, str) else None
    if found is None:
        told = "" if schema is None else f" (its schema is {schema!r:.60})"
        raise ValueError(f"not a headprobe score file{told}")
    if int(found[1]) > MAJOR_VERSION:
        raise ValueError(f"written as {schema}, this headprobe reads up to {SCHEMA}: a newer headprobe is needed")


def _check_id(payload: dict[str, Any]) -> None:
    stated, found = payload.get("id"), _digest(payload)
    if stated != found:
        raise ValueError(f"the id {stated!r:.24} does not match the content ({found[:12]}...): changed or damaged")

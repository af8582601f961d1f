"""Scores of any file as those of another format, and what the target cannot hold."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headprobe._version import __version__
from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, reduce_to_kv
from headprobe.scores.distinct_trials import DistinctTrials
from headprobe.scores.foreign.duo import CONFIG_NAME, TABLE_NAME, duo_bytes
from headprobe.scores.foreign.keyed import keyed_bytes
from headprobe.scores.head_scores import Floats, HeadScores, Method, ScoreTable, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance
from headprobe.scores.score_file import score_file_bytes

TARGETS = ("headprobe", "headkv", "duo")
PLACEHOLDERS = {"needle": "unknown-N", "length": 1, "depth": 0.0, "f1": 0.0, "response": "", "num_steps": 0}
DUO_WINDOWS = {"sink_size": 128, "recent_size": 256}


@dataclass(frozen=True)
class Target:
    """What the source lacks: the model's name and geometry, the method; how query heads become KV heads (`how`:
    `mean` or `max`), and `config`, the fields of Duo's `config.json` that are known. Without `knows_width` the
    geometry's `head_dim` is a placeholder."""

    model: str | None = None
    geometry: ModelGeometry | None = None
    method: str | None = None
    how: str = "mean"
    config: Mapping[str, Any] | None = None
    knows_width: bool = True


@dataclass(frozen=True)
class Converted:
    """The bytes of each file by name (the first is the table itself), and in words what was lost and what had to be
    made up."""

    files: Mapping[str, bytes]
    lost: tuple[str, ...]


def convert(scores: AnyScores, to: str, target: Target) -> Converted:
    """Write `scores` as `to`: `headprobe`, `headkv` (one line of JSON by key) or `duo` (tsv and config).

    Raises `OptionError` for another `to`, or where the geometry is needed and missing or does not fit.
    """
    if to not in TARGETS:
        raise OptionError(f"--to is {to!r}, need one of {', '.join(TARGETS)}")
    if scores.native is not None and to == "headprobe":
        return Converted({"": score_file_bytes(scores.native)}, ())
    scores = _with_method(scores, target)
    return {"headprobe": to_native, "headkv": to_keyed, "duo": to_duo}[to](scores, target)


def to_native(scores: AnyScores, target: Target) -> Converted:
    """A native file. What the format asks for and the source does not tell gets a placeholder, named in `probes`."""
    geometry = _fitting(scores, target)
    mean, trials = _query_heads(scores, geometry)
    rows, table = _rows(mean, trials)
    probes: dict[str, Any] = {"converted_from": {"format": scores.format, "sha256": scores.sha256}}
    probes["placeholders"] = sorted(PLACEHOLDERS) + ([] if target.knows_width else ["head_dim"])
    provenance = Provenance(
        ModelIdentity(target.model or scores.model or "unknown"), None, probes, {"headprobe": __version__}
    )
    made = HeadScores(geometry, _method(scores), rows, provenance, table)
    told = [f"not in the source, placeholders stand for them: {', '.join(sorted(PLACEHOLDERS))} of the trials"]
    if not target.knows_width:
        told.append(f"not in the source: the width of a head; {geometry.head_dim} stands for it")
    if trials is None:
        told.append("not in the source: the trials' scores; one trial without scores stands for all of them")
    if scores.heads == "kv":
        told.append(f"each of {geometry.group_size} query heads has the score of the KV head that they share")
    return Converted({"": score_file_bytes(made)}, tuple(told))


def to_keyed(scores: AnyScores, target: Target) -> Converted:
    """One line of JSON by `layer-head` key, in layer, head order."""
    told = []
    mean, trials = scores.mean, scores.trial_scores
    if scores.heads == "kv" or (scores.is_ranking and target.geometry is not None):
        mean, trials = _query_heads(scores, _fitting(scores, target))
        told += ["each query head has the score of the KV head that it shares"] if scores.heads == "kv" else []
    if trials is None:
        told.append("not in the source: the trials' scores; each head has its mean as the only trial")
        trials = mean[None]
    if scores.is_ranking:
        told.append("points for the place in the ranking stand where scores belong")
    if scores.native is not None:
        failed = scores.native.num_trials - scores.native.num_passed
        told.append("lost: model, method, tokenizer, probes, environment; of each trial all but the scores")
        told += [f"lost: {failed} trials that did not pass"] if failed else []
    return Converted({"": keyed_bytes(trials)}, tuple(told))


def to_duo(scores: AnyScores, target: Target) -> Converted:
    """Duo's table of KV heads, with its config."""
    told = []
    mean = scores.mean
    if scores.heads != "kv":
        geometry = _fitting(scores, target)
        mean = _grouped(_query_heads(scores, geometry)[0], geometry.num_key_value_heads, target.how)
        told.append(
            f"lost: single query heads; a KV head has the {target.how} of the {geometry.group_size} that share it"
        )
    if scores.trial_scores is not None:
        told.append("lost: the trials and everything known of them")
    if mean.max() > 1.0 or mean.min() < 0.0:
        told.append(
            f"scores from {mean.min():.4g} to {mean.max():.4g} where Duo's lie between 0 and 1; kept as they are"
        )
    config = {"model_name": target.model or scores.model or "unknown", **DUO_WINDOWS, **(target.config or {})}
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    return Converted({TABLE_NAME: duo_bytes(mean), CONFIG_NAME: text.encode("utf-8")}, tuple(told))


def _with_method(scores: AnyScores, target: Target) -> AnyScores:
    if target.method is None or scores.native is not None:
        return scores
    return AnyScores(**(vars(scores) | {"method": target.method}))


def _fitting(scores: AnyScores, target: Target) -> ModelGeometry:
    geometry = scores.geometry or target.geometry
    if geometry is None:
        how = "--model does" if scores.heads == "kv" else "--model or --num-kv-heads does"
        raise OptionError(f"{scores.path} does not tell which query heads share a KV head; {how}")
    heads = geometry.num_key_value_heads if scores.heads == "kv" else geometry.num_attention_heads
    found, due = scores.mean.shape, (geometry.num_hidden_layers, heads)
    if found != due and not (scores.is_ranking and found[0] <= due[0] and found[1] <= due[1]):
        name = target.model or "the model"
        raise OptionError(f"{scores.path} has {found[0]} x {found[1]} heads, {name} has {due[0]} x {due[1]}")
    return geometry


def _query_heads(scores: AnyScores, geometry: ModelGeometry) -> tuple[Floats, Floats | None]:
    """Mean and trials over all query heads: KV heads repeated, rankings filled up with zeros."""
    if scores.heads == "kv":
        return np.repeat(scores.mean, geometry.group_size, axis=1), None
    if scores.mean.shape == geometry.shape:
        return scores.mean, scores.trial_scores
    whole = np.zeros(geometry.shape)
    whole[: scores.num_layers, : scores.num_heads] = scores.mean
    return whole, None


def _grouped(mean: Floats, num_kv_heads: int, how: str) -> Floats:
    """`reduce_to_kv`, but groups of equal scores keep them to the last bit."""
    most, least = reduce_to_kv(mean, num_kv_heads, "max"), -reduce_to_kv(-mean, num_kv_heads, "max")
    return np.where(most == least, most, reduce_to_kv(mean, num_kv_heads, how))


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

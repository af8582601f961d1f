"""What a picture is about: a table of heads and the words that say where it comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headprobe.errors import OptionError
from headprobe.pictures.style import LONGEST_FORMULA, LONGEST_NAME, count, printable
from headprobe.scores.any_scores import AnyScores, reduce_to_kv
from headprobe.scores.head_scores import Floats, HeadScores
from headprobe.scores.summary import DistinctTrials
from headprobe.scores.uncertainty import ClusteredTrials


@dataclass(frozen=True, eq=False)
class Subject:
    """A table `[layers, heads]` of query or KV heads (`head_name`), `group_size` to a KV head, and its words."""

    table: Floats
    head_name: str
    group_size: int
    title: str
    subtitle: str
    facts: tuple[str, ...]
    scale_title: str = "mean score of the passing trials"


def subject_of(scores: HeadScores | AnyScores, kv_heads: bool = False, num_kv_heads: int | None = None) -> Subject:
    """The heads of the file, or with `kv_heads` its KV heads by the mean over their query heads.

    `num_kv_heads` is for files that do not state it. Raises `OptionError` where neither of them does, or they disagree.
    """
    groups = kv_heads_of(scores, num_kv_heads)
    if isinstance(scores, HeadScores):
        return _native_subject(scores, kv_heads)
    if scores.native is not None:
        return _native_subject(scores.native, kv_heads)
    return _foreign_subject(scores, kv_heads, groups)


def kv_heads_of(scores: HeadScores | AnyScores, stated: int | None = None) -> int | None:
    """The number of KV heads per layer: as the file states, else `stated`; None where neither is known.

    Raises `OptionError` where the two disagree, or the heads cannot be shared evenly.
    """
    if not isinstance(scores, HeadScores) and scores.heads == "kv":
        told: int | None = scores.num_heads
    else:
        told = None if scores.geometry is None else scores.geometry.num_key_value_heads
    if told is not None and stated is not None and told != stated:
        raise OptionError(f"--num-kv-heads is {stated}, the file's model has {told}")
    if told is None and stated is not None:
        reduce_to_kv(scores.mean, stated)
    return told if told is not None else stated


def _native_subject(scores: HeadScores, kv_heads: bool) -> Subject:
    model, method = scores.provenance.model, scores.method
    formula = printable(method.formula, LONGEST_FORMULA)
    return Subject(
        table=scores.to_kv_heads("mean") if kv_heads else scores.mean,
        head_name="KV head" if kv_heads else "head",
        group_size=1 if kv_heads else scores.geometry.group_size,
        title=printable(model.id, LONGEST_NAME),
        subtitle=f"{printable(method.name, LONGEST_NAME)}: {formula}" if formula else printable(method.name),
        facts=(*_trial_facts(scores), *_probe_facts(scores.provenance.probes), _head_fact(scores, kv_heads)),
    )


def _foreign_subject(scores: AnyScores, kv_heads: bool, groups: int | None) -> Subject:
    is_kv = scores.heads == "kv"
    joins = kv_heads and not is_kv
    if joins and groups is None:
        raise OptionError(f"{scores.path.name} does not say how many KV heads its model has; give --num-kv-heads")
    table = reduce_to_kv(scores.mean, groups) if joins and groups else scores.mean
    noun = f"{'KV' if is_kv or joins else 'query'} heads" + (", each the mean of its query heads" if joins else "")
    return Subject(
        table=table,
        head_name="KV head" if is_kv or joins else "head",
        group_size=1 if is_kv or joins or groups is None else scores.num_heads // groups,
        title=printable(scores.model or scores.path.name, LONGEST_NAME),
        subtitle=_foreign_subtitle(scores),
        facts=(*_foreign_facts(scores), f"{table.shape[0]} layers x {table.shape[1]} {noun}"),
        scale_title=_foreign_scale(scores),
    )


def _foreign_subtitle(scores: AnyScores) -> str:
    method = "" if scores.method is None else f"{printable(scores.method)}; "
    source = "" if scores.model is None else f", {printable(scores.path.name)}"
    return f"{method}{scores.family}{source}"


def _foreign_scale(scores: AnyScores) -> str:
    if scores.is_ranking:
        return "place in the ranking, counted from its end (the file has no scores)"
    return "score" if scores.trial_scores is None else "mean score of the trials"


def _foreign_facts(scores: AnyScores) -> list[str]:
    if scores.trial_scores is None:
        return ["no trials in the file"]
    trials = len(scores.trial_scores)
    distinct = DistinctTrials.of(scores.trial_scores).number
    return [count(trials, "trial") + ("" if distinct == trials else f", {distinct:,} of them distinct")]


def _trial_facts(scores: HeadScores) -> list[str]:
    passed, total = scores.num_passed, scores.num_trials
    facts = [f"{passed} of {total} trials passed ({100 * passed / total:.0f} %)"]
    lengths, depths = [t.length for t in scores.trials], [t.depth for t in scores.trials]
    facts.append(_range(min(lengths), max(lengths), "tokens"))
    facts.append("depth " + _range(min(depths), max(depths), "%"))
    return facts


def _range(low: float, high: float, unit: str) -> str:
    return f"{low:,.10g} {unit}" if low == high else f"{low:,.10g} to {high:,.10g} {unit}"


def _probe_facts(probes: Mapping[str, Any]) -> list[str]:
    names = ((kind, probes.get(kind)) for kind in ("needles", "haystack"))
    return [f"{kind} {printable(block['name'], 32)}" for kind, block in names if isinstance(block, dict)]


def _head_fact(scores: HeadScores, kv_heads: bool) -> str:
    layers, heads = scores.geometry.shape
    groups, size = scores.geometry.num_key_value_heads, scores.geometry.group_size
    if kv_heads:
        joined = "" if size == 1 else f", each the mean of {size} query heads"
        return f"{layers} layers x {groups} KV heads{joined}"
    shared = "" if size == 1 else f", {size} per KV head"
    return f"{layers} layers x {heads} query heads{shared}"


def clustered(scores: AnyScores) -> ClusteredTrials | None:
    """The trials of a file in groups that are drawn together; None where it holds none."""
    if scores.trial_scores is None or not len(scores.trial_scores):
        return None
    return ClusteredTrials.of_any(scores)

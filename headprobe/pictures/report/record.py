"""What the report's page knows of one score file, as plain JSON: its figures, and where it comes from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from headprobe.errors import HeadprobeError
from headprobe.pictures.coverage import Coverage
from headprobe.pictures.style import printable
from headprobe.pictures.subject import clustered, subject_of
from headprobe.scores.any_scores import AnyScores
from headprobe.scores.head_scores import Floats, HeadScores, rank_heads
from headprobe.scores.stability import rank_intervals, stability
from headprobe.scores.summary import ScoreSummary, summarize
from headprobe.scores.uncertainty import ClusteredTrials
from headprobe.scores.validation import FileReport

# Where a file comes from, as names and values that a reader can go through.

LONGEST_VALUE = 400
MOST_ENTRIES = 60

Block = tuple[str, list[tuple[str, str]]]


def provenance_blocks(scores: AnyScores) -> list[Block]:
    """Titled blocks of names and values: the file, then what a native file states: model, method, probes, machine."""
    file = [
        ("Name", printable(scores.path.name, LONGEST_VALUE)),
        ("Format", scores.family),
        ("SHA-256", scores.sha256),
    ]
    file += [("Model", printable(scores.model, LONGEST_VALUE))] if scores.model and scores.native is None else []
    file += [("Method", printable(scores.method, LONGEST_VALUE))] if scores.method and scores.native is None else []
    if scores.geometry is not None and scores.native is None:
        file.append(("KV heads per layer", str(scores.geometry.num_key_value_heads)))
    file += [("Note", printable(note, LONGEST_VALUE)) for note in scores.notes]
    return [("File", file), *([] if scores.native is None else _native_blocks(scores.native))]


def _native_blocks(scores: HeadScores) -> list[Block]:
    came, geometry = scores.provenance, scores.geometry
    size = {
        "layers": geometry.num_hidden_layers, "query heads": geometry.num_attention_heads,
        "KV heads": geometry.num_key_value_heads, "head dim": geometry.head_dim,
    }  # fmt: skip
    method = {"name": scores.method.name, "version": scores.method.version, "formula": scores.method.formula}
    blocks: list[tuple[str, Mapping[str, Any]]] = [
        ("Model", {**_told(came.model), **size}),
        ("Tokenizer", {} if came.tokenizer is None else _told(came.tokenizer)),
        ("Method", {**method, **scores.method.parameters}),
        ("Probes", came.probes),
        ("Environment", {"written": came.created_at, **came.environment}),
    ]
    return [(title, flat(values)) for title, values in blocks if values]


def _told(block: Any) -> dict[str, Any]:
    return {name: value for name, value in vars(block).items() if name != "extra" and value is not None}


def flat(values: Any, name: str = "") -> list[tuple[str, str]]:
    """Nested JSON as dotted names and short texts.

    >>> flat({"gate": {"metric": "f1", "threshold": 0.5}, "lengths": [512, 1024], "limit": None})
    [('gate metric', 'f1'), ('gate threshold', '0.5'), ('lengths', '512, 1024'), ('limit', 'none')]
    """
    if isinstance(values, Mapping) and values:
        entries = [entry for key, value in values.items() for entry in flat(value, f"{name} {_word(key)}".strip())]
        return entries[:MOST_ENTRIES]
    return [(name, _short(values))]


def _word(key: str) -> str:
    return printable(str(key), 60).replace("_", " ")


def _short(value: Any) -> str:
    if isinstance(value, list):
        return printable(", ".join(_short(item) for item in value[:MOST_ENTRIES]), LONGEST_VALUE) or "none"
    if isinstance(value, bool) or value is None:
        return {None: "none", True: "yes", False: "no"}[value]
    return printable(f"{value:.10g}" if isinstance(value, float) else str(value), LONGEST_VALUE)


# What the report's page knows of one score file, as plain JSON.

LONGEST_ANSWER = 280
STABLE_TOP = 20


@dataclass(frozen=True)
class Detail:
    """How much of a file the page shows: answers, the best heads that have intervals, digits of a score (None: all)."""

    answers: int
    sure: int
    digits: int | None = None


def file_record(scores: AnyScores, name: str, report: FileReport) -> dict[str, Any]:
    """One file as the page reads it; tables are flat, in layer, head order."""
    summary, subject = summarize(scores, 1), subject_of(scores)
    geometry, trials = scores.geometry, clustered(scores)
    native = scores.native
    return {
        "name": name,
        "model": None if scores.model is None else subject.title,
        "method": subject.subtitle,
        "methodName": scores.method,
        "format": scores.family,
        "heads": scores.heads,
        "layers": scores.num_layers,
        "width": scores.num_heads,
        "groups": scores.num_heads if scores.heads == "kv" else geometry and geometry.num_key_value_heads,
        "headDim": geometry and geometry.head_dim,
        "ranking": scores.is_ranking,
        "mean": scores.mean.ravel().tolist(),
        "intervals": None if trials is None else _intervals(trials),
        "trials": None if trials is None else trials.num_trials,
        "distinct": summary.num_distinct_trials,
        "half": summary.half_mass_heads,
        "zeroFraction": summary.zero_fraction,
        "tiles": _tiles(scores, summary),
        "verdict": None if trials is None else _verdict(trials),
        "coverage": None if native is None else _coverage(native),
        "answers": None if native is None else _answers(native),
        "numAnswers": 0 if native is None else native.num_trials,
        "findings": [[f.check, f.severity, printable(f.detail, 600), f.why] for f in report.findings],
        "checksPassed": len(report.passed),
        "provenance": provenance_blocks(scores),
        "note": None,
    }


def _intervals(trials: ClusteredTrials) -> dict[str, list[float]]:
    """Per head, in layer, head order: ends of the 95 % intervals of score and rank, and trials above 0."""
    shape = trials.scores.shape[1:]
    ends = np.zeros((4, *shape))
    for head in rank_intervals(trials, top=shape[0] * shape[1]):
        ends[:, head.layer, head.head] = head.score_low, head.score_high, head.rank_low, head.rank_high
    low, high = (short_numbers(table) for table in ends[:2])
    rank_low, rank_high = (_half_steps(table) for table in ends[2:])
    above = (trials.scores > 0).sum(axis=0).ravel().tolist()
    return {"low": low, "high": high, "rankLow": rank_low, "rankHigh": rank_high, "above": above}


def shortened(record: dict[str, Any], detail: Detail) -> dict[str, Any]:
    """The same file with at most so much detail; `note` says what of its heads is left out.

    >>> ends = {"low": [1, 2, 3], "above": [5, 5, 5]}
    >>> shortened({"mean": [0.2, 0.1, 0.3], "answers": [[1], [2]], "intervals": ends}, Detail(1, 2))["intervals"]
    {'low': [1, None, 3], 'above': [5, 5, 5]}
    """
    mean, ends, answers, left_out = record["mean"], record["intervals"], record["answers"], []
    if ends is not None and detail.sure < len(mean):
        best = set(sorted(range(len(mean)), key=lambda index: -mean[index])[: detail.sure])
        left_out.append(f"intervals of all heads but the best {detail.sure}" if best else "intervals")
        ends = {
            name: values if name == "above" else [value if i in best else None for i, value in enumerate(values)]
            for name, values in ends.items()
        } if best else None  # fmt: skip
    if detail.digits is not None:
        left_out.append(f"digits of the scores beyond {detail.digits}")
        mean = short_numbers(np.array(mean))
    note = f"To stay small, this page leaves out {' and '.join(left_out)}." if left_out else None
    return {**record, "mean": mean, "answers": answers and answers[: detail.answers], "intervals": ends, "note": note}


def short_numbers(table: Floats) -> list[float]:
    """The numbers with five digits that count.

    >>> short_numbers(np.array([0.123456789, 12.0]))
    [0.12346, 12]
    """
    return [_shorter(float(f"{value:.5g}")) for value in table.ravel().tolist()]


def _half_steps(table: Floats) -> list[float]:
    return [_shorter(round(2 * value) / 2) for value in table.ravel().tolist()]


def _shorter(value: float) -> float:
    return int(value) if value.is_integer() else value


def _tiles(scores: AnyScores, summary: ScoreSummary) -> list[tuple[str, str]]:
    """The few figures that stand at the top, each with what it is."""
    best = rank_heads(scores.mean)[0]
    if scores.is_ranking:
        ranked = int((scores.mean > 0).sum())
        return [
            (f"{ranked:,}", "heads ranked"),
            (f"{best[0]}-{best[1]}", "first"),
            ("none", "scores: the file is a ranking"),
        ]
    kind = "KV" if scores.heads == "kv" else "query"
    tiles = [(f"{scores.num_layers} × {scores.num_heads}", f"layers × {kind} heads")]
    if summary.num_trials is not None:
        tiles.append(_trial_tile(summary))
    return [
        *tiles,
        (f"{best[0]}-{best[1]}", f"best head, {best[2]:.4g}"),
        (f"{summary.half_mass_heads:,}", "heads hold half of the total score"),
        (f"{100 * summary.zero_fraction:.1f} %", "of the heads score 0"),
    ]


def _trial_tile(summary: ScoreSummary) -> tuple[str, str]:
    told = "trials passed" if summary.num_passed != summary.num_trials else "trials, all passed"
    number = (
        f"{summary.num_passed:,}"
        if summary.num_passed == summary.num_trials
        else f"{summary.num_passed:,} of {summary.num_trials:,}"
    )
    if summary.num_distinct_trials is not None and summary.num_distinct_trials != summary.num_passed:
        told = f"{told.removesuffix(', all passed')}, {summary.num_distinct_trials:,} of them distinct"
    return number, told


def _verdict(trials: ClusteredTrials) -> str | None:
    heads = trials.flat.shape[1]
    try:
        sentence = stability(trials, top=min(STABLE_TOP, heads - 1)).verdict
    except HeadprobeError:  # a model of one head
        return None
    return sentence[:1].upper() + sentence[1:] + "."


def _coverage(scores: HeadScores) -> dict[str, Any]:
    found = Coverage.of(scores)
    lengths, depths = found.lengths, found.depths
    cells = [[lengths.index(c.length), depths.index(c.depth), c.passed, c.total, c.repeated] for c in found.cells]
    note = found.told_repeats()
    return {"lengths": lengths, "depths": depths, "cells": cells, "note": note[:1].upper() + note[1:] + "."}


def _answers(scores: HeadScores) -> list[list[Any]]:
    """Failed trials first, since they are more informative."""
    trials: Iterable[Any] = sorted(scores.trials, key=lambda trial: trial.passed)
    return [
        [printable(t.needle), t.length, t.depth, t.passed, round(t.f1, 4), printable(t.response, LONGEST_ANSWER)]
        for t in trials
    ]

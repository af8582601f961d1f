"""`{"layer-head": [score of each passing trial]}`: the one line of JSON of Retrieval_Head, HeadKV and their kin."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from headprobe.scores.any_scores import AnyScores, fitting, query_heads
from headprobe.scores.formats.format import (
    MAX_TRIALS,
    QUERY,
    SHARES,
    Contents,
    Converted,
    FaultError,
    Format,
    StatedFacts,
    check_heads,
    checked_number,
)
from headprobe.scores.head_scores import Floats
from headprobe.scores.strict_json import LARGEST_SCORE

_KEY = re.compile(r"(0|[1-9]\d{0,4})-(0|[1-9]\d{0,4})", re.ASCII)
_NUMBERS = {int, float}


def is_keyed(value: Any) -> bool:
    """Whether a parsed JSON value is an object with a key `layer-head`."""
    return isinstance(value, dict) and any(_KEY.fullmatch(key) for key in value)


def read_keyed(value: Mapping[str, Any]) -> Contents:
    """The table in a parsed object; the keys say which head is meant, their order says nothing.

    Raises `FaultError` for keys of another form, missing or too many heads, heads without a trial, and what is no
    finite number.

    >>> read_keyed({"0-1": [0.5, 1.0], "0-0": [0.0, 0.0]}).mean.tolist()
    [[0.0, 0.75]]
    """
    check_heads(len(value))
    heads = [_head(key) for key in value]
    shape = _shape(heads)
    lists = {head: _trials(item, head) for head, item in zip(heads, value.values(), strict=True)}
    counts = {head: len(trials) for head, trials in lists.items()}
    mean = np.zeros(shape)
    for (layer, head), trials in lists.items():
        mean[layer, head] = np.mean(trials)
    notes = [*_order_note(heads), *_count_note(counts)]
    scalar = not any(isinstance(item, list) for item in value.values())
    stacked = None if scalar or len(set(counts.values())) > 1 else _stacked(lists, shape)
    return Contents(QUERY, mean, stacked, facts=SHARES, notes=tuple(notes))


def keyed_bytes(trial_scores: Floats) -> bytes:
    """`[T, L, H]` as one line of JSON in layer, head order, as the loaders of that family expect it.

    >>> keyed_bytes(np.array([[[0.5, 1.0]], [[0.25, 0.0]]]))
    b'{"0-0": [0.5, 0.25], "0-1": [1.0, 0.0]}'
    """
    _, layers, heads = trial_scores.shape
    record = {
        f"{layer}-{head}": trial_scores[:, layer, head].tolist() for layer in range(layers) for head in range(heads)
    }
    return json.dumps(record, allow_nan=False).encode("ascii")


def to_keyed(scores: AnyScores, stated: StatedFacts) -> Converted:
    """One line of JSON by `layer-head` key, in layer, head order."""
    told = []
    mean, trials = scores.mean, scores.trial_scores
    if scores.heads == "kv" or (scores.is_ranking and stated.geometry is not None):
        mean, trials = query_heads(scores, fitting(scores, stated))
        told += ["each query head has the score of the KV head that it shares"] if scores.heads == "kv" else []
    if trials is None:
        told.append("not in the source: the trials' scores; each head has its mean as the only trial")
        trials = mean[None]
    if scores.is_ranking:
        told.append("points for the place in the ranking are used as scores")
    if scores.native is not None:
        failed = scores.native.num_trials - scores.native.num_passed
        told.append("lost: model, method, tokenizer, probes, environment; everything about a trial except its scores")
        told += [f"lost: {failed} trials that did not pass"] if failed else []
    return Converted({"": keyed_bytes(trials)}, tuple(told))


def _head(key: str) -> tuple[int, int]:
    found = _KEY.fullmatch(key)
    if found is None:
        raise FaultError("bad-key", f"the key {key[:40]!r} is not of the form layer-head, as in '13-18'")
    return int(found[1]), int(found[2])


def _shape(heads: list[tuple[int, int]]) -> tuple[int, int]:
    layers, columns = max(layer for layer, _ in heads) + 1, max(head for _, head in heads) + 1
    if layers * columns != len(heads):
        there = set(heads)
        cells = ((layer, head) for layer in range(layers) for head in range(columns))
        first = next(cell for cell in cells if cell not in there)
        told = f"{layers * columns - len(heads)} of {layers} x {columns} heads are missing, the first is"
        raise FaultError("missing-heads", f"{told} {first[0]}-{first[1]}")
    return layers, columns


def _trials(item: Any, head: tuple[int, int]) -> list[float]:
    where = f"the score of head {head[0]}-{head[1]}"
    if not isinstance(item, list):
        return [checked_number(item, where)]
    if not item:
        raise FaultError("empty-head", f"head {head[0]}-{head[1]} has no trial")
    if len(item) > MAX_TRIALS:
        raise FaultError("too-long", f"head {head[0]}-{head[1]} has {len(item)} trials, need at most {MAX_TRIALS}")
    if {type(score) for score in item} <= _NUMBERS and all(-LARGEST_SCORE <= score <= LARGEST_SCORE for score in item):
        return item
    return [checked_number(score, f"{where} in trial {index + 1}") for index, score in enumerate(item)]


def _stacked(lists: Mapping[tuple[int, int], list[float]], shape: tuple[int, int]) -> Floats:
    trials = len(next(iter(lists.values())))
    made = np.empty((trials, *shape))
    for (layer, head), scores in lists.items():
        made[:, layer, head] = scores
    return made


def _order_note(heads: list[tuple[int, int]]) -> list[str]:
    ordered = sorted(heads)
    for index, (found, due) in enumerate(zip(heads, ordered, strict=True)):
        if found != due:
            told = f"key {index + 1} is {found[0]}-{found[1]}, in layer, head order it is {due[0]}-{due[1]}"
            moved = sum(a != b for a, b in zip(heads, ordered, strict=True))
            return [f"keys-out-of-order: {told}; {moved} of {len(heads)} keys are elsewhere"]
    return []


def _count_note(counts: Mapping[tuple[int, int], int]) -> list[str]:
    least, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[least] == counts[most]:
        return []
    few, many = f"{least[0]}-{least[1]} has {counts[least]}", f"{most[0]}-{most[1]} has {counts[most]}"
    return [f"unequal-trials: heads differ in their number of trials: {few}, {many}"]


KEYED = Format(
    name="headkv",
    about="JSON by layer-head key",
    family="JSON of HeadKV or Retrieval_Head",
    fits=lambda source: is_keyed(source.json),
    read=lambda source: read_keyed(source.json),
    write=to_keyed,
)

"""Scores of any file as those of another format, and what writers of formats share."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.scores.any_scores import AnyScores, reduce_to_kv
from headprobe.scores.formats import FORMATS, names_to_write
from headprobe.scores.formats.format import Converted as Converted
from headprobe.scores.formats.format import Target as Target
from headprobe.scores.head_scores import Floats


def convert(scores: AnyScores, to: str, target: Target) -> Converted:
    """Write `scores` as `to`, the name of a format that can be written, such as `headkv` (one line of JSON by key).

    Raises `OptionError` for another `to`, or where the geometry is needed and missing or does not fit.
    """
    write = FORMATS[to].write if to in names_to_write() else None
    if write is None:
        known = [name for name in names_to_write() if name != to]
        raise OptionError(f"--to is {to!r}, need one of {', '.join(known)}")
    if target.method is not None and scores.native is None:
        scores = replace(scores, method=target.method)
    return write(scores, target)


def fitting(scores: AnyScores, target: Target) -> ModelGeometry:
    """The geometry of the file, else of the target. Raises `OptionError` where there is none, or the table has another
    shape."""
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


def query_heads(scores: AnyScores, geometry: ModelGeometry) -> tuple[Floats, Floats | None]:
    """Mean and trials over all query heads: KV heads repeated, rankings filled up with zeros."""
    if scores.heads == "kv":
        return np.repeat(scores.mean, geometry.group_size, axis=1), None
    if scores.mean.shape == geometry.shape:
        return scores.mean, scores.trial_scores
    whole = np.zeros(geometry.shape)
    whole[: scores.num_layers, : scores.num_heads] = scores.mean
    return whole, None


def grouped(mean: Floats, num_kv_heads: int, how: str) -> Floats:
    """`reduce_to_kv`, but groups of equal scores keep them to the last bit."""
    most, least = reduce_to_kv(mean, num_kv_heads, "max"), -reduce_to_kv(-mean, num_kv_heads, "max")
    return np.where(most == least, most, reduce_to_kv(mean, num_kv_heads, how))

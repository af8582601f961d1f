"""What a knockout run refuses: scores of another model, and records in its journal that no such run writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import KnockoutBench, KnockoutOptions, needle_record, text_record
from headprobe.evaluation.knockout.head_orders import check_top
from headprobe.evaluation.knockout.switched_off import HeadSet
from headprobe.geometry import ModelGeometry
from headprobe.models.catalog import find_alias
from headprobe.models.loading import LoadedModel, geometry_of
from headprobe.profiling.record_check import field, is_number, one_of, share, text
from headprobe.scores.any_scores import AnyScores

# Whose scores these are.


def model_of(scores: AnyScores, given: str | None) -> str:
    """The name of the model to load: `given`, else the file's own, where that can be found. Raises `OptionError`."""
    if given is not None:
        return given
    name = scores.model
    if name is None:
        raise OptionError(f"{scores.path.name} does not say whose scores it holds: --model does")
    if find_alias(name) is None and "/" not in name:
        raise OptionError(
            f"{scores.path.name} holds scores of a folder called {name!r:.80}: --model names where it lies"
        )
    return name


def check_heads(scores: AnyScores, options: KnockoutOptions, model: str) -> None:
    """Refuse before the model loads, by its config alone: numbers of heads, and scores of another shape.

    Raises `OptionError`, and as `geometry_of`.
    """
    check_top(options.top, scores.mean.size)
    _check_shape(scores, geometry_of(model), model)


def check_model(scores: AnyScores, loaded: LoadedModel) -> None:
    """Refuse scores of another model: by their shape, and by config and weights where the file names them.

    Raises `OptionError`.
    """
    _check_shape(scores, loaded.geometry, loaded.name)
    identity = None if scores.native is None else scores.native.provenance.model
    if identity is None:
        return
    if identity.config_sha256 not in (None, loaded.config_sha256):
        raise OptionError(
            f"{scores.path.name} holds scores of {identity.id}, which is not {loaded.name}: another config"
        )
    same_format = identity.dtype in (None, loaded.dtype)  # rounding to another dtype may change samples of weights
    if same_format and identity.weights_sha256 not in (None, loaded.weights_sha256):
        raise OptionError(f"{scores.path.name} holds scores of other weights of {identity.id} than {loaded.name} has")


def _check_shape(scores: AnyScores, geometry: ModelGeometry, name: str) -> None:
    heads = geometry.num_key_value_heads if scores.heads == "kv" else geometry.num_attention_heads
    found, due = scores.mean.shape, (geometry.num_hidden_layers, heads)
    if found != due and not (scores.is_ranking and found[0] <= due[0] and found[1] <= due[1]):
        kind = "KV" if scores.heads == "kv" else "query"
        told = f"{scores.path.name} has {found[0]} layers x {found[1]} {kind} heads"
        raise OptionError(f"{told}, {name} has {due[0]} x {due[1]}: scores of another model")


# Records that are read back.


class RecordCheck:
    """The check of the records of `sets` on a bench: the work they are of, and the types of each field."""

    def __init__(self, bench: KnockoutBench, sets: Sequence[HeadSet]) -> None:
        batches = bench.batches(sets)
        self._rows = {
            needle_record(number, prompt.trial_id): len(batch)
            for number, batch in enumerate(batches) for prompt in bench.prompts
        }  # fmt: skip
        self._losses = {
            text_record(number, place): len(batch)
            for number, batch in enumerate(batches) for place in range(len(bench.texts))
        }  # fmt: skip

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Raise `ValueError` for a record that is wrong."""
        name = record["trial"]
        if name in self._losses:
            values = _listed(record, "losses", self._losses[name])
            if not all(is_number(value, 0.0) for value in values):
                raise ValueError("its losses are not all numbers of at least 0")
            return
        if name not in self._rows:
            raise ValueError("the run has no such trial")
        for row in _listed(record, "rows", self._rows[name]):
            if not isinstance(row, dict):
                raise ValueError("one of its rows is no object")
            text(row, "response")
            for flag in ("answered", "exact_match"):
                one_of(row, flag, (True, False))
            share(row, "answer_f1")
            if field(row, "answer_loss") is not None and not is_number(row["answer_loss"], 0.0):
                raise ValueError(f"its answer_loss is {row['answer_loss']!r:.60}, need a number of at least 0 or null")


def _listed(record: Mapping[str, Any], name: str, length: int) -> list[Any]:
    values = field(record, name)
    if not isinstance(values, list) or len(values) != length:
        raise ValueError(f"its {name} are {values!r:.60}, need a list of {length}")
    return values

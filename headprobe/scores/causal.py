"""What a score file says about whether its heads matter: results of switching them off, the block `causal`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from headprobe.errors import OptionError, OutputExistsError
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.strict_json import Fields

CAUSAL = "causal"
EFFECTS = ("causal", "unspecific", "none", "reversed", "unclear")
MOST = 1e6  # of any figure: points, shares and nats are far below
_ESTIMATES = ("top", "random", "difference")

Result = dict[str, Any]


def causal_results(scores: HeadScores | None) -> list[Result]:
    """The results in a file, one for each mode in which heads were switched off, in the order of the file."""
    found: list[Result] = [] if scores is None else list(scores.extra.get(CAUSAL, []))
    return found


def check_room(scores: HeadScores, mode: str, overwrite: bool) -> None:
    """Raise `OutputExistsError` where the file has a result of this mode and `overwrite` is false."""
    if not overwrite and any(result["mode"] == mode for result in causal_results(scores)):
        raise OutputExistsError(f"the score file holds a result by {mode!r} already; --overwrite replaces it")


def with_causal(scores: HeadScores, result: Result, overwrite: bool = False) -> HeadScores:
    """The same scores with `result` behind those of other modes; it takes the place of one of its own mode.

    Raises as `check_room`, and `OptionError` for a result that no score file may hold.
    """
    try:
        check_causal(Fields({CAUSAL: [result]}, ""))
    except ValueError as error:
        raise OptionError(f"this result cannot be written: {error}") from None
    check_room(scores, result["mode"], overwrite)
    kept = [dict(each) for each in causal_results(scores) if each["mode"] != result["mode"]]
    return replace(scores, extra={**scores.extra, CAUSAL: [*kept, result]})


def check_causal(top: Fields) -> None:
    """Check the block in the fields of a file, where it is there. Raises `ValueError` that names the field."""
    if not top.has(CAUSAL):
        return
    modes = []
    for number, row in enumerate(top.get(CAUSAL, list)):
        result = Fields(row, f"{CAUSAL}[{number}]")
        modes.append(result.text("mode"))
        if result.text("effect") not in EFFECTS:
            raise ValueError(f"{result.name('effect')} is {row['effect']!r:.60}, need one of {', '.join(EFFECTS)}")
        result.text("verdict")
        result.integer("num_prompts", 1)
        _check_estimates(result, "whole")
        for place, each in enumerate(result.get("steps", list)):
            _check_step(Fields(each, f"{result.name('steps')}[{place}]"), each)
    if len(set(modes)) < len(modes):
        raise ValueError(f"{CAUSAL} has two results of one mode ({', '.join(modes):.60})")


def _check_step(step: Fields, values: Mapping[str, Any]) -> None:
    step.integer("k", 1)
    for name in _ESTIMATES:
        if not step.has(name):
            raise ValueError(f"{step.name(name)} is missing")
        if name == "top" or values[name] is not None:
            _check_estimates(step, name)


def _check_estimates(holder: Fields, name: str) -> None:
    """Metrics by name, each with mean, ends of its interval (numbers or null) and how many values it is of."""
    block = holder.block(name)
    for metric, value in block.everything().items():
        found = Fields(value, block.name(metric))
        found.integer("num")
        for part in ("mean", "low", "high"):
            if not found.has(part):
                raise ValueError(f"{found.name(part)} is missing")
            if value[part] is not None:
                found.number(part, -MOST, MOST)

"""Score files that a referee judges as they are, instead of scoring their detectors again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import KnockoutOptions
from headprobe.evaluation.knockout.checks import check_heads
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.scores.any_scores import AnyScores, read_any

Given = Mapping[str, AnyScores]  # by detector


def read_given(paths: Sequence[Path], detectors: Sequence[str], model: str) -> dict[str, AnyScores]:
    """The scores of each file, by its method.

    Before a model loads: raises `OptionError` for a file that is not in headprobe's own form (no other says whose
    weights it is of), of a method that is not judged, a second one of the same method, or of a model of another shape;
    and as `read_any`, `geometry_of`.
    """
    given: dict[str, AnyScores] = {}
    for path in paths:
        scores = read_any(path)
        if scores.native is None or scores.method is None:
            raise OptionError(
                f"--scores {path} is of format {scores.format}, which does not say whose weights it is of: `headprobe "
                "scores convert` brings it into headprobe's form"
            )
        if scores.method not in detectors:
            raise OptionError(
                f"--scores {path} holds scores of {scores.method!r:.60}, which is not judged: --detectors names "
                f"{', '.join(detectors)}"
            )
        if scores.method in given:
            raise OptionError(f"--scores {given[scores.method].path} and {path} both hold scores of {scores.method}")
        given[scores.method] = scores
    for scores in given.values():
        check_heads(scores, KnockoutOptions(), model)
    return given


def given_notes(given: Given) -> list[str]:
    """In words which files are of another version of their method than today's."""
    notes = []
    for name, scores in given.items():
        now, then = ESTIMATORS[name].version, None if scores.native is None else scores.native.method.version
        if then != now:
            notes.append(f"{scores.path} is of version {then} of {name}, today's is {now}")
    return notes

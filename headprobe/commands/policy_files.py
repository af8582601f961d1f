"""`--policy-file`: a policy with its options, budget and scores from a file, in the place of the options for these."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.output import tell
from headprobe.errors import OptionError
from headprobe.evaluation.tuning.policy_file import PolicyFile, read_policy_file
from headprobe.models.loading import LoadedModel

PolicyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--policy-file",
        metavar="FILE",
        help="Policy, its options, budget and scores, as `headprobe tune` writes them.",
        show_default=False,
    ),
]


def named_policy(path: Path | None, given: Mapping[str, tuple[object, object]]) -> PolicyFile | None:
    """What the file holds; None where none is named.

    `given`: options that the file decides, each with its value and its default. Raises `OptionError` where one of them
    has another value than its default, and as `read_policy_file`.
    """
    if path is None:
        return None
    for option, (value, default) in given.items():
        if value != default:
            raise OptionError(f"{option} is given, and --policy-file {path} decides it too: leave one of them out")
    return read_policy_file(path)


def budget_of(chosen: PolicyFile) -> int:
    """Its budget, for evaluations. Raises `OptionError` where the file has a ratio."""
    if chosen.budget is None:
        raise OptionError(f"{chosen.path} has a ratio of {chosen.ratio}, and evaluations go by a budget in entries")
    return chosen.budget


def scores_of(chosen: PolicyFile, given: list[Path] | None) -> tuple[Path, ...]:
    """The file of its head scores, `given` or found. Raises as `PolicyFile.scores_path`, `OptionError` for several."""
    if given and chosen.scores is None:
        raise OptionError(f"--scores {given[0]} is given, and {chosen.policy.name} of {chosen.path} takes no scores")
    if given and len(given) > 1:
        raise OptionError(f"{len(given)} files are given with --scores, and {chosen.path} takes one")
    found = chosen.scores_path(given[0] if given else None)
    return () if found is None else (found,)


def tell_other_model(chosen: PolicyFile | None, loaded: LoadedModel) -> None:
    """Say, on stderr, that a policy was chosen for another model than the one that is loaded."""
    remark = None if chosen is None else chosen.remark(loaded)
    if remark is not None:
        tell(f"note: {remark}")

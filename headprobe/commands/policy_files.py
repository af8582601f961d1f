"""`--policy-file`: a policy with its options, budget and scores from a file, in the place of the options for these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.output import tell
from headprobe.errors import OptionError
from headprobe.evaluation.tuning.policy_file import PolicyFile, read_policy_file
from headprobe.evaluation.variants import PolicyOptions, parse_budgets, policy_names
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


@dataclass(frozen=True)
class Comparison:
    """What an evaluation compares: by the options, or by the policy file `chosen`, which decides all of it."""

    policies: tuple[str, ...]
    budgets: tuple[int, ...]
    scores: tuple[Path, ...]
    changes: PolicyOptions
    gqa: str
    chosen: PolicyFile | None = None


def comparison(
    path: Path | None,
    *,
    policies: tuple[str, str],
    budgets: tuple[str, str],
    scores: list[Path] | None,
    changes: PolicyOptions,
    gqa: str,
) -> Comparison:
    """As the options say, or the policy file at `path`; `policies` and `budgets` each with their default.

    Raises as `named_policy`, `budget_of` and `scores_of`, and `OptionError` for names and numbers that are none.
    """
    given: dict[str, tuple[object, object]] = {"--gqa": (gqa, "mean"), "--policies": policies, "--budgets": budgets}
    given |= {f"--{name}": (getattr(changes, name), None) for name in ("window", "pool", "beta", "sinks")}
    chosen = named_policy(path, given)
    if chosen is None:
        names, numbers = policy_names(policies[0]), parse_budgets(budgets[0])
        return Comparison(names, numbers, tuple(scores or ()), changes, gqa)
    names, numbers = policy_names(chosen.policy.name), (budget_of(chosen),)
    return Comparison(names, numbers, scores_of(chosen, scores), chosen.policy_options, chosen.gqa, chosen)


def tell_other_model(chosen: PolicyFile | None, loaded: LoadedModel) -> None:
    """Say, on stderr, that a policy was chosen for another model than the one that is loaded."""
    remark = None if chosen is None else chosen.remark(loaded)
    if remark is not None:
        tell(f"note: {remark}")

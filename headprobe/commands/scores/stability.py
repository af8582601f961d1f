"""`headprobe scores stability`: are there enough trials to trust the ranks?"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.output import print_table, printable, stdout_console, write_json
from headprobe.errors import OptionError
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.ranks import split_half
from headprobe.scores.stability import KINDS, TrialGroup, rank_intervals, stability, trial_groups
from headprobe.scores.uncertainty import ClusteredTrials

TOPS = (1, 2, 3, 5, 10, 20, 30, 40, 50, 60, 80, 100)
MOST_NEEDLES = 10  # rows printed; --json has all
CLUSTERS = {
    "needle": "trials of one needle count once",
    "needle-length": "trials of one needle in one length count once",
    "trial": "each counts for itself",
    "distinct scores": "trials with equal scores count once",
}

MOST_RESAMPLES = 1_000_000


def stability_command(
    file: Annotated[Path, typer.Argument(help="A score file that holds its trials.", show_default=False)],
    top: Annotated[int, typer.Option("--top", help="How many of the best heads should be stable.")] = 50,
    show: Annotated[int, typer.Option("--show", help="How many heads to list with their intervals.")] = 20,
    agreement: Annotated[
        float,
        typer.Option("--agreement", help="The share of the top heads that must be reproduced to count as stable."),
    ] = 0.95,
    clusters: Annotated[
        str, typer.Option("--clusters", help="Trials drawn together: needle, needle-length or trial (native files).")
    ] = "needle",
    resamples: Annotated[int, typer.Option("--resamples", help="Number of bootstrap resamples.")] = 2000,
    seed: Annotated[int, typer.Option("--seed", help="Seed of the draws.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check whether a score file has enough trials: rank intervals, split halves, odd lengths, depths and needles."""
    if show < 0:
        raise OptionError(f"--show is {show}, need at least 0")
    if seed < 0:
        raise OptionError(f"--seed is {seed}, need at least 0")
    if resamples > MOST_RESAMPLES:
        raise OptionError(f"--resamples is {resamples}, need at most {MOST_RESAMPLES:,}")
    scores = read_any(file)
    record = stability_record(scores, top, show, agreement, clusters, resamples, seed)
    if as_json:
        write_json(record)
    else:
        _print(record)


def stability_record(
    scores: AnyScores, top: int, show: int, agreement: float, clusters: str, resamples: int, seed: int
) -> dict[str, Any]:
    """What `--json` prints. A `top` of at least as many heads as there are is cut to half of them."""
    trials = ClusteredTrials.of_any(scores, clusters)
    wanted = top if top < scores.mean.size else max(1, scores.mean.size // 2)
    found = stability(trials, wanted, agreement, resamples, seed)
    heads = rank_intervals(trials, show, num_resamples=resamples, seed=seed)
    return {
        "path": str(scores.path),
        "model": scores.model,
        "method": scores.method,
        "num_trials": scores.native.num_trials if scores.native else found.num_trials,
        "num_passed": found.num_trials,
        "clusters": trials.kind,
        "num_clusters": found.num_clusters,
        "verdict": found.verdict,
        "is_stable": found.is_stable,
        "top": found.top,
        "agreement": agreement,
        "stable_top": found.stable_top,
        "more_trials": found.more_trials,
        "more_clusters": found.more_clusters,
        "top_k_again": [{"k": k, "share": share} for k, share in enumerate(found.overlap, 1)],
        "top_heads": [vars(head) for head in heads],
        "split_half": _split_half(trials, min(20, scores.mean.size), seed),
        "groups": _groups(scores, seed),
    }


def _split_half(trials: Any, top: int, seed: int) -> dict[str, Any] | None:
    if trials.num_clusters < 2:
        return None
    found = vars(split_half(trials, top, seed=seed))
    return {name: value if isfinite(value) else None for name, value in found.items()}


def _groups(scores: AnyScores, seed: int) -> dict[str, list[dict[str, Any]]] | None:
    if scores.native is None:
        return None
    return {kind: [_group(group) for group in trial_groups(scores.native, kind, seed)] for kind in KINDS}


def _group(group: TrialGroup) -> dict[str, Any]:
    return {name: value for name, value in vars(group).items() if name != "kind"} | {"is_unlike": group.is_unlike}


def _print(record: dict[str, Any]) -> None:
    console = stdout_console()
    named = ", ".join(printable(text) for text in (record["model"], record["method"]) if text)
    console.print(f"{record['path']}{': ' + named if named else ''}", soft_wrap=True, markup=False)
    passed = f"{record['num_passed']} of {record['num_trials']} trials passed"
    console.print(f"{passed}, {record['num_clusters']} independent ({CLUSTERS[record['clusters']]})\n")
    console.print(record["verdict"], style="bold", soft_wrap=True)
    _print_heads(record["top_heads"])
    _print_tops(record["top_k_again"])
    _print_split_half(record["split_half"])
    for kind, groups in (record["groups"] or {}).items():
        _print_groups(kind, groups)
    if record["groups"] is None:
        console.print("\nthis file does not state lengths, depths and needles")


def _print_heads(heads: list[dict[str, Any]]) -> None:
    if not heads:
        return
    stdout_console().print("\nbest heads, with 95 % intervals:\n")
    rows = [
        (
            h["rank"], f"{h['layer']}-{h['head']}", f"{h['score']:.3f}",
            f"{h['score_low']:.3f} to {h['score_high']:.3f}", f"{h['rank_low']:.0f} to {h['rank_high']:.0f}",
        )
        for h in heads
    ]  # fmt: skip
    columns = ("rank", "layer-head", "score", "score interval", "rank interval")
    print_table(columns, rows, right=columns)


def _print_tops(shares: list[dict[str, Any]]) -> None:
    shown = [entry for entry in shares if entry["k"] in TOPS or entry["k"] == len(shares)]
    if not shown:
        return
    stdout_console().print("\nhow much of the top would be reproduced:\n")
    columns = ("top", *(str(entry["k"]) for entry in shown))
    print_table(columns, [("share", *(f"{entry['share']:.0%}" for entry in shown))], right=columns[1:])


def _print_split_half(found: dict[str, Any] | None) -> None:
    if found is None or found["spearman"] is None:
        return
    console = stdout_console()
    console.print(
        f"\nhalves of the trials: Spearman {found['spearman']:.3f} ({found['low']:.3f} to {found['high']:.3f}), "
        f"for the whole file {found['whole']:.3f}; their top {found['top']} share {found['shared']:.1f}",
        soft_wrap=True,
    )


def _print_groups(kind: str, groups: list[dict[str, Any]]) -> None:
    measured = [group for group in groups if group["spearman"] is not None]
    if not measured:
        return
    shown, title = groups, f"by {kind}:"
    if kind == "needle" and len(measured) > MOST_NEEDLES:
        shown = sorted(measured, key=lambda group: group["deviation"] or 0.0)[:MOST_NEEDLES]
        title = f"the {MOST_NEEDLES} of {len(groups)} needles that differ most:"
    stdout_console().print(f"\n{title}\n")
    rows = [
        (
            printable(group["name"]), f"{group['num_passed']}/{group['num_trials']}", _number(group["spearman"]),
            _number(group["expected"]), "differs" if group["is_unlike"] else "",
        )
        for group in shown
    ]  # fmt: skip
    print_table((kind, "passed", "Spearman with the rest", "expected", ""), rows, right=("passed", "expected"))


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:.2f}"

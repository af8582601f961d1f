"""`headprobe budgets`: how many entries of the cache each KV head would get."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.options import (
    BetaOption,
    GqaOption,
    OverwritePictureOption,
    PolicyOption,
    SinksOption,
    WindowOption,
)
from headprobe.commands.output import stdout_console, write_json
from headprobe.commands.picture_output import PictureFile, figures, picture_file
from headprobe.commands.reading import with_geometry
from headprobe.compression.policies import make_policy
from headprobe.evaluation.head_budgets import BudgetTable, ReferenceLoss, budget_table
from headprobe.pictures.budget_map import BudgetMap, print_budget_map
from headprobe.pictures.subject import kv_heads_of, subject_of
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.score_file import newest_score_file

DEFAULT_BUDGET = 256


def budgets_command(
    scores: Annotated[
        Path | None,
        typer.Argument(help="The score file, native or foreign; default: the newest in scores/.", show_default=False),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            "--budget", help=f"Mean entries per KV head; {DEFAULT_BUDGET} without --ratio.", show_default=False
        ),
    ] = None,
    ratio: Annotated[
        float | None, typer.Option("--ratio", help="The budget as a share of the prompt, up to 1.", show_default=False)
    ] = None,
    policy: PolicyOption = "headkv-r2",
    beta: BetaOption = None,
    window: WindowOption = None,
    sinks: SinksOption = None,
    gqa: GqaOption = "mean",
    num_kv_heads: Annotated[
        int | None,
        typer.Option("--num-kv-heads", help="KV heads per layer, for files that do not state it.", show_default=False),
    ] = None,
    prompt_tokens: Annotated[
        int | None,
        typer.Option(
            "--prompt-tokens",
            help="Length of the prompt; default: the longest length scored, else 8192.",
            show_default=False,
        ),
    ] = None,
    compat: Annotated[
        str | None,
        typer.Option("--compat", help="headkv, pyramidkv: round as that code does.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            show_default=False,
            help="The picture, ending in .png, .svg or .pdf; default: beside the score file.",
        ),
    ] = None,
    overwrite: OverwritePictureOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
) -> None:
    """Show how many entries of a prompt each KV head would keep, without loading a model."""
    chosen = make_policy(policy, beta=beta, window=window, sinks=sinks, compat=compat)
    held = with_geometry(read_any(scores or newest_score_file()))
    path = output or held.path.with_name(f"{held.path.stem}--budgets.png")
    picture = picture_file(path, overwrite, {"SCORES": held.path})
    table = budget_table(
        held,
        chosen,
        kv_heads_of(held, num_kv_heads),
        budget=DEFAULT_BUDGET if budget is None and ratio is None else budget,
        ratio=ratio,
        prompt_tokens=prompt_tokens,
        gqa=gqa,
    )
    _draw(held, table, picture, num_kv_heads)
    if as_json:
        write_json({"path": str(path), "scores": str(held.path), **budgets_record(table)})
    else:
        _print(held, table, path, num_kv_heads)


def budgets_record(table: BudgetTable) -> dict[str, Any]:
    """What `--json` prints of the budgets. A value that is not known, or that the policy does not have, is null."""
    policy, per_entry = table.policy, table.bytes_per_entry
    return {
        "policy": policy.name,
        "budget": table.budget,
        "ratio": table.ratio,
        "prompt_tokens": table.prompt_tokens,
        "window": policy.selector.window,
        "sinks": policy.sinks,
        "beta": getattr(policy.allocator, "beta", None),
        "compat": getattr(policy.allocator, "compat", None),
        "gqa": table.gqa,
        "layers": list(table.layers),
        "num_kv_heads": table.capacity.shape[1],
        "kv_entries": table.entries,
        "full_kv_entries": table.full_entries,
        "kv_bytes": None if per_entry is None else table.entries * per_entry,
        "full_kv_bytes": None if per_entry is None else table.full_entries * per_entry,
        "lost": float(table.lost),
        "reference": None if table.reference is None else _loss_record(table.reference),
        "capacity": table.capacity.tolist(),
        "notes": list(table.notes),
    }


def _loss_record(loss: ReferenceLoss) -> dict[str, Any]:
    return {
        "heads": loss.heads,
        "asked_entries": loss.asked,
        "rounded_entries": loss.wanted,
        "usable_entries": loss.spent,
        "lost": float(loss.lost),
        "lost_to_rounding": float(loss.lost_to_rounding),
        "lost_to_clamping": float(loss.lost_to_clamping),
    }


def _draw(scores: AnyScores, table: BudgetTable, picture: PictureFile, num_kv_heads: int | None) -> None:
    subject = subject_of(scores, False, num_kv_heads)
    picture.write(lambda: figures().budget_map_figure(subject, table))


def _print(scores: AnyScores, table: BudgetTable, path: Path, num_kv_heads: int | None) -> None:
    console, drawn, subject = stdout_console(), BudgetMap(table), subject_of(scores, False, num_kv_heads)
    for line in (subject.title, " | ".join(drawn.outcome()), *table.notes, ""):
        console.print(line, soft_wrap=True, markup=False)
    print_budget_map(table, console)
    for line in (*(["", *drawn.losses()] if drawn.losses() else []), "", f"picture: {path}"):
        console.print(line, soft_wrap=True, markup=False)

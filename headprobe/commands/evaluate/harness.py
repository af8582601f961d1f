"""`headprobe eval harness`: tasks of lm-evaluation-harness, answered from compressed caches."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.options import PAIRS, DeviceOption, DtypeOption, GqaOption, ModelOption
from headprobe.commands.output import print_table, tell, write_json
from headprobe.compression.policies import POLICIES
from headprobe.errors import OptionError
from headprobe.evaluation.extras import check_installed, needed
from headprobe.evaluation.variants import check_scores_exist, parse_budgets, policy_names
from headprobe.models.loading import LoadedModel, load_model
from headprobe.scores.files import check_place, write_atomically

SCHEMA = "headprobe-harness/1"
COLUMNS = ("task", "metric", "policy", "budget", "questions", "value", "± error", "minus full")


def harness_command(
    tasks: Annotated[str, typer.Option(help="Names of the harness's tasks, with commas.")],
    model: ModelOption = "demo",
    policies: Annotated[
        str, typer.Option(help=f"{', '.join(POLICIES)}, or {PAIRS}; with commas; all for every named one.")
    ] = "full,snapkv,headkv-r2",
    budgets: Annotated[str, typer.Option(help="Mean entries per KV head, window included.")] = "128",
    scores: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Score file; default: one in scores/.", show_default=False)
    ] = None,
    gqa: GqaOption = "mean",
    limit: Annotated[
        int | None, typer.Option(help="Take the first N questions of each task.", show_default=False)
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Examples before each question; default: as the task has it.", show_default=False)
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with tasks of your own (YAML).", show_default=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Questions that are generated together.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE", help="Write the results as JSON.", show_default=False),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as one JSON object.")] = False,
) -> None:
    """Run tasks of lm-evaluation-harness on compressed caches, against the full cache."""
    names, sizes = policy_names(policies), sorted(set(parse_budgets(budgets)))
    wanted = [name.strip() for name in tasks.split(",") if name.strip()]
    for number, what in ((limit, "--limit"), (batch_size, "--batch-size")):
        if number is not None and number < 1:
            raise OptionError(f"{what} is {number}, need at least 1")
    if num_fewshot is not None and num_fewshot < 0:
        raise OptionError(f"--num-fewshot is {num_fewshot}, need 0 or more")
    check_installed("lm_eval", "eval harness", "harness")
    check_scores_exist(names, () if scores is None else (scores,), model)
    if output is not None:
        check_place(output, overwrite)
    manager = task_manager(include_path, wanted)
    loaded = load_model(model, device=device, dtype=dtype)
    asked = {"tasks": wanted, "limit": limit, "num_fewshot": num_fewshot, "task_manager": manager}
    given = {"scores": None if scores is None else str(scores), "gqa": gqa, "batch_size": batch_size}
    rows: list[dict[str, Any]] = []
    for name in names:
        for budget in [None] if name == "full" else sizes:
            rows += measured(loaded, {**given, "policy": name, "budget": budget}, asked)
            tell(f"{name}{'' if budget is None else f' at {budget}'} is through")
    record = {"schema": SCHEMA, "model": loaded.name, "dtype": loaded.dtype, "limit": limit, "rows": rows}
    if output is not None:
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(output, text.encode(), overwrite)
    if as_json:
        write_json(record)
    else:
        print_table(COLUMNS, [_row(row, rows) for row in rows], right=COLUMNS[3:])


def task_manager(folder: Path | None, wanted: list[str]) -> Any:
    """The harness's list of tasks, with those of `folder`. Raises `OptionError` for a task that is not in it."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    if folder is not None and not folder.is_dir():
        raise OptionError(f"--include-path {folder} is no folder")
    made = needed("lm_eval.tasks", "eval harness", "harness").TaskManager(
        include_path=None if folder is None else str(folder)
    )
    for name in wanted:
        if not made.match_tasks([name]):
            raise OptionError(f"the harness has no task {name!r:.60}: `lm_eval ls tasks` lists them")
    return made


def measured(loaded: LoadedModel, given: dict[str, Any], asked: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per task and metric of one policy at one budget."""
    lm = needed("headprobe.evaluation.harness", "eval harness", "harness").CompressedLM(loaded, **given)
    found = needed("lm_eval", "eval harness", "harness").simple_evaluate(
        model=lm, bootstrap_iters=0, log_samples=False, verbosity="ERROR", **asked
    )
    rows = []
    for task, values in found["results"].items():
        number = found.get("n-samples", {}).get(task, {}).get("effective")
        for metric, value in values.items():
            name, _, kind = metric.partition(",")
            if not isinstance(value, int | float) or name.endswith("_stderr") or not kind:
                continue
            error = values.get(f"{name}_stderr,{kind}")
            rows.append({
                "task": task, "metric": metric, "policy": given["policy"], "budget": given["budget"],
                "num_questions": number, "value": value, "stderr": error if isinstance(error, float) else None,
            })  # fmt: skip
    return rows


def _row(row: dict[str, Any], rows: list[dict[str, Any]]) -> tuple[object, ...]:
    full = next((r["value"] for r in rows if r["policy"] == "full" and (r["task"], r["metric"]) == _key(row)), None)
    return (
        row["task"], row["metric"].partition(",")[0], row["policy"], row["budget"], row["num_questions"],
        f"{row['value']:.4g}", None if row["stderr"] is None else f"{row['stderr']:.2g}",
        None if full is None or row["policy"] == "full" else f"{row['value'] - full:+.4g}",
    )  # fmt: skip


def _key(row: dict[str, Any]) -> tuple[str, str]:
    return row["task"], row["metric"]

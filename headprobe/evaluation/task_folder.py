"""The folder of an evaluation on tasks: rows as they come, checked when read back, and what is made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.evaluation.needle_folder import GridFolder, RowCheck, check_tokens, found_no_memory, told_windows
from headprobe.evaluation.published_scores import SETS as PUBLISHED_SETS
from headprobe.evaluation.published_scores import published_for
from headprobe.evaluation.summaries import EvaluationFrame
from headprobe.evaluation.task import Task
from headprobe.evaluation.task_grid import TaskGrid
from headprobe.evaluation.task_summary import TaskSummary
from headprobe.evaluation.task_trial import MEASURED
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel
from headprobe.profiling.record_check import field, number, one_of, share, text, whole
from headprobe.stages import stage_record

SCHEMA = "headprobe-tasks/1"
ROWS, SUMMARY, TABLE, CURVE = "rows.jsonl", "summary.json", "table.md", "scores.png"
COUNTS = ("new_tokens", "kv_entries", "kv_entries_asked", "full_kv_entries", "kv_bytes", "full_kv_bytes")


@dataclass(frozen=True)
class TaskFolder(GridFolder):
    """Where a run is written. `rows.jsonl` is the run itself; all else is made from it, and made anew each time."""

    rows: ClassVar[str] = ROWS
    derived: ClassVar[tuple[str, ...]] = (SUMMARY, TABLE, CURVE)

    @classmethod
    def of(cls, model: str, tasks: Sequence[tuple[Task, str]], query_agnostic: bool) -> TaskFolder:
        """`evals/longbench+ruler--<model>`, with `--query-agnostic` behind it for runs of that kind."""
        names = "+".join(dict.fromkeys(task.name for task, _ in tasks))
        kind = "--query-agnostic" if query_agnostic else ""
        return cls(Path("evals") / f"{names}--{short_name(model).replace('/', '--')}{kind}")


def check_task_head(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a row whose fields that are known before its trial runs are of another type."""
    for name in ("set", "cluster", "metric"):
        text(row, name)
    whole(row, "cut_tokens", 0)
    check_tokens(row)


def check_task_row(row: Mapping[str, Any]) -> None:
    """Raise `ValueError` for a row whose measured fields are wrong."""
    if found_no_memory(row, MEASURED):
        return
    text(row, "response")
    text(row, "kernel")
    share(row, "score")
    one_of(row, "evicts", (True, False))
    for name in COUNTS:
        whole(row, name, 0)
    for name in ("ttft_s", "seconds"):
        number(row, name)
    for name in ("peak_bytes", "s_per_token"):
        if field(row, name) is not None:
            number(row, name)


class TaskRowCheck(RowCheck):
    """The check of one run's rows, as they are read back: head and types of each field."""

    whole = "run"

    def _check_measured(self, row: Mapping[str, Any]) -> None:
        check_task_row(row)


def frame_of(loaded: LoadedModel, grid: TaskGrid) -> EvaluationFrame:
    """What the run's summary states besides results, and its trials."""
    published = published_for(loaded.source, grid.sets)
    stated = {
        "schema": SCHEMA,
        "model": loaded.name,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
        "query_agnostic": grid.options.query_agnostic,
        "seed": grid.options.asked.seed,
        "limit": grid.options.asked.limit,
        "metrics": {p.set: p.metric for p in reversed(grid.prompts)},
        "own_wording": sorted(grid.options.asked.templates) or None,
        "planned_prompts": len(grid.prompts),
        "planned_rows": grid.num_trials,
        "windows": told_windows(grid),
        "remarks": grid.remarks(),
        "policies": {variant.name: {**variant.describe(), "remark": variant.remark} for variant in grid.variants},
        "published": None if published is None else published.model,
    }
    first = grid.prompts[0]
    answers = tuple(trial.id.removeprefix(f"{first.trial_id}|") for trial in grid.trials_of(first))
    return EvaluationFrame(stated, tuple(prompt.trial_id for prompt in grid.prompts), answers)


def summary_record(frame: EvaluationFrame, summary: TaskSummary) -> dict[str, Any]:
    """The summary as one JSON object, with all that decides what it holds. What was not measured is null."""
    return {
        **frame.stated,
        "is_complete": frame.is_complete(summary.rows),
        **summary.record(),
        "published": _published(frame.stated["published"], summary),
        "stages": stage_record(),
    }


def _published(model: str | None, summary: TaskSummary) -> dict[str, Any] | None:
    """The paper's figures for `model` beside the mean of the same six sets; None where it has none for either."""
    found = None if model is None else published_for(model, summary.sets)
    if found is None:
        return None
    six = TaskSummary(tuple(row for row in summary.rows if row["set"] in PUBLISHED_SETS))
    rows = [
        {"policy": cell.key.policy, "budget": cell.key.budget, "num_prompts": cell.num_prompts,
         "score": cell.score.mean, "published": None if figure is None else figure / 100}
        for cell in six.cells if not cell.key.is_baseline and cell.key.kv_cache_dtype == AUTO
        for figure in [found.of(cell.key.policy, cell.key.budget)]
    ]  # fmt: skip
    return {"model": found.model, "group": found.group, "rows": rows}

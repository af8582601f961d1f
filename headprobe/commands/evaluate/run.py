"""`headprobe eval TASK`: policies against each other, and against the full cache, on tasks with known answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.evaluate.needles_output import GridProgress, tell_remarks
from headprobe.commands.evaluate.run_output import print_plan, print_results, record_of, write_results
from headprobe.commands.interrupts import Orderly
from headprobe.commands.options import (
    AttentionOption,
    BaselinesOption,
    BetaOption,
    BudgetsOption,
    ChatTemplateOption,
    DeviceMapOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    GqaOption,
    HaystackOption,
    KvCacheDtypeOption,
    LayerChunkOption,
    MinutesOption,
    ModelOption,
    OverwriteRunOption,
    PoliciesOption,
    PoolOption,
    QuantizationOption,
    QueryAgnosticOption,
    ResumeOption,
    ScoreFilesOption,
    SinksOption,
    SummaryJsonOption,
    WindowOption,
    check_minutes,
)
from headprobe.commands.output import RESUME_HINT, tell, tell_cut
from headprobe.compression.kv_cache_dtypes import AUTO, parse_kv_cache_dtypes
from headprobe.errors import OptionError
from headprobe.evaluation.task import TASKS, TaskRequest, parse_tasks, read_templates
from headprobe.evaluation.task_grid import (
    TaskFolder,
    TaskGrid,
    TaskOptions,
    TaskRowCheck,
    check_trials,
    is_finished,
    run_tasks,
)
from headprobe.evaluation.task_summary import TaskSummary
from headprobe.evaluation.variants import PolicyOptions, check_scores_exist, parse_budgets, policy_names
from headprobe.home import in_home
from headprobe.models.loading import LoadedModel, load_model, load_to_plan
from headprobe.probes.plan import parse_lengths

MADE = ("needles", "ruler")  # tasks whose prompts are made to a length


def run_command(
    tasks: Annotated[
        str,
        typer.Argument(help=f"{', '.join(TASKS)}; with commas, and sets behind a colon: longbench:qasper+lcc,ruler."),
    ],
    model: ModelOption = "demo",
    policies: PoliciesOption = "full,snapkv,ada-snapkv,headkv-r2",
    budgets: BudgetsOption = "64,128",
    limit: Annotated[
        int | None, typer.Option(help="Take the first N questions of each set.", show_default=False)
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the tasks' files lie; else they come from the hub.", show_default=False
        ),
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="Of made prompts (ruler, needles), such as 2k,4k; default: the window.", show_default=False),
    ] = None,
    haystack: HaystackOption = "all",
    templates: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON of wordings by set, in place of ours.", show_default=False),
    ] = None,
    cut: Annotated[
        str | None,
        typer.Option(help="Prompts beyond the window lose their middle, left, or refuse.", show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(help="Of each answer, in place of the tasks' own.", show_default=False)
    ] = None,
    scores: ScoreFilesOption = None,
    baselines: BaselinesOption = "none",
    query_agnostic: QueryAgnosticOption = False,
    window: WindowOption = None,
    pool: PoolOption = None,
    beta: BetaOption = None,
    sinks: SinksOption = None,
    gqa: GqaOption = "mean",
    attention: AttentionOption = "auto",
    prefill_chunk: LayerChunkOption = None,
    kv_cache_dtype: KvCacheDtypeOption = AUTO,
    seed: Annotated[int, typer.Option(help="Of made prompts, and of baselines.")] = 0,
    chat: ChatTemplateOption = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder; default evals/<tasks>--<model>.", show_default=False
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteRunOption = False,
    minutes: MinutesOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    quantization: QuantizationOption = None,
    dry_run: DryRunOption = False,
    as_json: SummaryJsonOption = False,
) -> None:
    """Compare policies on tasks with known answers, such as longbench:qasper,ruler: scores, and what they cost."""
    check_minutes(minutes)
    chosen = parse_tasks(tasks)
    if lengths is not None and not any(task.name in MADE for task, _ in chosen):
        raise OptionError(f"--lengths is for tasks whose prompts are made ({', '.join(MADE)})")
    asked = TaskRequest(
        data_dir=None if data_dir is None else in_home(data_dir),
        limit=limit,
        lengths=None if lengths is None else parse_lengths(lengths),
        seed=seed,
        haystack=haystack,
        templates={} if templates is None else read_templates(in_home(templates)),
        chat=chat,
    )
    options = TaskOptions(
        tasks=chosen,
        asked=asked,
        policies=policy_names(policies),
        budgets=parse_budgets(budgets),
        scores=tuple(scores or ()),
        baselines=() if baselines == "none" else tuple(name.strip() for name in baselines.split(",")),
        policy_options=PolicyOptions(window, pool, beta, sinks),
        gqa=gqa,
        cut=cut,
        max_new_tokens=max_new_tokens,
        query_agnostic=query_agnostic,
        attention=attention,
        prefill_chunk=prefill_chunk,
        kv_cache_dtypes=parse_kv_cache_dtypes(kv_cache_dtype),
    )
    check_scores_exist(options.policies, options.scores, model)
    folder = TaskFolder.of(model, chosen, query_agnostic) if output is None else TaskFolder(output)
    if not dry_run:
        read = {f"--scores ({number})": str(path) for number, path in enumerate(options.scores, 1)}
        read |= {f"the task {task.name}": wanted for task, wanted in chosen if task.name == "jsonl"}
        folder.check(resume=resume, overwrite=overwrite, inputs=read | {"--templates": templates})
    sets = options.sets()
    load = load_to_plan if dry_run else load_model
    loaded = load(model, device=device, dtype=dtype, device_map=device_map, quantization=quantization)
    grid = TaskGrid.build(loaded, options, sets)
    check_trials(grid)
    tell_remarks(grid)
    for remark in grid.remarks():
        tell(f"note: {remark}")
    if dry_run:
        print_plan(loaded, grid, as_json)
    else:
        run(loaded, grid, folder, How(resume, overwrite, minutes, as_json))


@dataclass(frozen=True)
class How:
    """How a run goes on or begins, how long it may take, and what is printed."""

    resume: bool
    overwrite: bool
    minutes: float | None
    as_json: bool


def run(loaded: LoadedModel, grid: TaskGrid, folder: TaskFolder, how: How) -> None:
    """Measure what is left, write summary, table and picture, print the table."""
    seconds = None if how.minutes is None else 60 * how.minutes
    description = grid.describe(loaded)
    with (
        Orderly(RESUME_HINT),
        folder.journal(description, resume=how.resume, overwrite=how.overwrite, check=TaskRowCheck(grid)) as journal,
    ):
        if journal.was_cut:
            tell_cut(journal.path)
        left = [trial for trial in grid.trials() if not is_finished(journal, trial)]
        with GridProgress(grid, left) as progress:
            rows = run_tasks(loaded, grid, journal, seconds=seconds, on_trial=progress.update)
        summary = TaskSummary(tuple(rows))
        record = record_of(loaded, grid, summary)
        write_results(folder, summary, record)
    print_results(folder, summary, record, how.as_json)

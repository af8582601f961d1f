"""`headprobe eval TASK`: policies against each other, and against the full cache, on tasks with known answers."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.evaluate.needles_output import GridProgress, tell_remarks
from headprobe.commands.evaluate.run_output import finished, print_plan, print_results
from headprobe.commands.evaluate.spread import Evaluation, Spread, run_spread
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    AttentionOption,
    BaselinesOption,
    BetaOption,
    BudgetsOption,
    ChatTemplateOption,
    DataDirOption,
    DeviceMapOption,
    DeviceOption,
    DryRunOption,
    DtypeOption,
    GqaOption,
    HaystackOption,
    KvCacheDtypeOption,
    LayerChunkOption,
    LimitOption,
    MadeLengthsOption,
    MinutesOption,
    ModelOption,
    OverwriteRunOption,
    PoliciesOption,
    PoolOption,
    QuantizationOption,
    QueryAgnosticOption,
    ResumeOption,
    ScoreFilesOption,
    ShardOption,
    SinksOption,
    SummaryJsonOption,
    TogetherOption,
    WindowOption,
    check_minutes,
    score_inputs,
)
from headprobe.commands.output import tell
from headprobe.commands.policy_files import PolicyFileOption, comparison, tell_other_model
from headprobe.compression.kv_cache_dtypes import AUTO, parse_kv_cache_dtypes
from headprobe.errors import OptionError
from headprobe.evaluation.shares import Share
from headprobe.evaluation.task import TASKS, TaskRequest, parse_tasks, read_templates
from headprobe.evaluation.task_folder import TaskFolder, TaskRowCheck, frame_of
from headprobe.evaluation.task_grid import TaskGrid, TaskOptions, check_trials, run_tasks
from headprobe.evaluation.trials import Row
from headprobe.evaluation.variants import PolicyOptions, check_scores_exist, parse_baselines
from headprobe.home import in_home
from headprobe.models.loading import LoadedModel, load_model, load_to_plan
from headprobe.probes.plan import parse_lengths
from headprobe.profiling.journal import Journal

POLICIES_ASKED, BUDGETS_ASKED = "full,snapkv,ada-snapkv,headkv-r2", "64,128"
MADE = ("needles", "ruler")  # tasks whose prompts are made to a length


@observed
def run_command(
    tasks: Annotated[
        str,
        typer.Argument(help=f"{', '.join(TASKS)}; with commas, and sets behind a colon: longbench:qasper+lcc,ruler."),
    ],
    model: ModelOption = "demo",
    policies: PoliciesOption = POLICIES_ASKED,
    budgets: BudgetsOption = BUDGETS_ASKED,
    policy_file: PolicyFileOption = None,
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    lengths: MadeLengthsOption = None,
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
    together: TogetherOption = False,
    shard: ShardOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    quantization: QuantizationOption = None,
    dry_run: DryRunOption = False,
    as_json: SummaryJsonOption = False,
) -> None:
    """Compare policies on tasks with known answers, such as longbench:qasper,ruler: scores, and what they cost."""
    check_minutes(minutes)
    compared = comparison(
        policy_file, policies=(policies, POLICIES_ASKED), budgets=(budgets, BUDGETS_ASKED), scores=scores,
        changes=PolicyOptions(window, pool, beta, sinks), gqa=gqa,
    )  # fmt: skip
    spread = Spread.of(shard, resume, overwrite, minutes, as_json)
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
        policies=compared.policies,
        budgets=compared.budgets,
        scores=compared.scores,
        baselines=parse_baselines(baselines),
        policy_options=compared.changes,
        gqa=compared.gqa,
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
        read = score_inputs(options.scores)
        read |= {f"the task {task.name}": wanted for task, wanted in chosen if task.name == "jsonl"}
        spread.check(folder, read | {"--templates": templates})
    sets = options.sets()
    load = load_to_plan if dry_run else load_model
    loaded = load(model, device=spread.device(device), dtype=dtype, device_map=device_map, quantization=quantization)
    if not dry_run:
        tell_other_model(compared.chosen, loaded)
    grid = TaskGrid.build(loaded, options, sets)
    check_trials(grid)
    if spread.is_first:
        tell_remarks(grid)
        for remark in grid.remarks():
            tell(f"note: {remark}")
    if not dry_run:
        run(loaded, grid, folder, spread, together)
    elif spread.is_first:
        print_plan(loaded, grid, as_json)


def run(loaded: LoadedModel, grid: TaskGrid, folder: TaskFolder, spread: Spread, together: bool) -> None:
    """Measure what is left, write summary, table and picture, print the table; a part leaves its rows alone."""

    asked = Evaluation(grid, folder, grid.describe(loaded), TaskRowCheck(grid), frame_of(loaded, grid))

    def measure(journal: Journal, share: Share, progress: GridProgress) -> list[Row]:
        return run_tasks(
            loaded, grid, journal, seconds=spread.seconds, together=together, on_trial=progress.update, share=share
        )

    made = run_spread(asked, spread, measure, partial(finished, folder, asked.frame))
    if made is not None:
        print_results(folder, *made, spread.as_json)

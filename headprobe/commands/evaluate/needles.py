"""`headprobe eval needles`: policies against each other, and against the full cache, on needles in haystacks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.evaluate.needles_output import (
    GridProgress,
    finished,
    print_plan,
    print_summary,
    tell_remarks,
)
from headprobe.commands.evaluate.spread import Evaluation, Spread, run_spread
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    AttentionOption,
    BaselinesOption,
    BetaOption,
    BudgetsOption,
    ChatTemplateOption,
    DepthsOption,
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
    NeedlesPerCellOption,
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
from headprobe.commands.policy_files import PolicyFileOption, comparison, tell_other_model
from headprobe.commands.score_output import tell_prompts
from headprobe.compression.kv_cache_dtypes import AUTO, parse_kv_cache_dtypes
from headprobe.evaluation.needle_folder import GridFolder, RowCheck, frame_of
from headprobe.evaluation.needle_grid import GridOptions, NeedleGrid, run_grid
from headprobe.evaluation.shares import Share
from headprobe.evaluation.trials import Row
from headprobe.evaluation.variants import PolicyOptions, parse_baselines
from headprobe.models.loading import LoadedModel, load_model, load_to_plan
from headprobe.probes.plan import parse_lengths
from headprobe.profiling.journal import Journal

POLICIES_ASKED, BUDGETS_ASKED = "full,snapkv,ada-snapkv,headkv-r2", "16,32,64,128"


@observed
def needles_command(
    model: ModelOption = "demo",
    policies: PoliciesOption = POLICIES_ASKED,
    budgets: BudgetsOption = BUDGETS_ASKED,
    policy_file: PolicyFileOption = None,
    lengths: Annotated[
        str | None,
        typer.Option(
            help="Context lengths in tokens, such as 1k,2k; default: half the window and all of it.", show_default=False
        ),
    ] = None,
    depths: DepthsOption = 10,
    needles: Annotated[str, typer.Option(help="Needle set or .jsonl file.")] = "reasoning",
    needles_per_cell: NeedlesPerCellOption = 1,
    haystack: HaystackOption = "all",
    scores: ScoreFilesOption = None,
    baselines: BaselinesOption = "random,shuffled",
    query_agnostic: QueryAgnosticOption = False,
    together: TogetherOption = False,
    window: WindowOption = None,
    pool: PoolOption = None,
    beta: BetaOption = None,
    sinks: SinksOption = None,
    gqa: GqaOption = "mean",
    attention: AttentionOption = "auto",
    prefill_chunk: LayerChunkOption = None,
    kv_cache_dtype: KvCacheDtypeOption = AUTO,
    seed: Annotated[int, typer.Option(help="Choice of needles, start of the haystack, baselines.")] = 0,
    chat: ChatTemplateOption = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder; default evals/needles--<model>.", show_default=False
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteRunOption = False,
    minutes: MinutesOption = None,
    shard: ShardOption = None,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    quantization: QuantizationOption = None,
    dry_run: DryRunOption = False,
    as_json: SummaryJsonOption = False,
) -> None:
    """Compare policies at equal budgets: who still finds the needle, and what it costs."""
    check_minutes(minutes)
    compared = comparison(
        policy_file, policies=(policies, POLICIES_ASKED), budgets=(budgets, BUDGETS_ASKED), scores=scores,
        changes=PolicyOptions(window, pool, beta, sinks), gqa=gqa,
    )  # fmt: skip
    spread = Spread.of(shard, resume, overwrite, minutes, as_json)
    options = GridOptions(
        policies=compared.policies,
        budgets=compared.budgets,
        lengths=None if lengths is None else parse_lengths(lengths),
        depths=depths,
        needles=needles,
        needles_per_cell=needles_per_cell,
        haystack=haystack,
        scores=compared.scores,
        baselines=parse_baselines(baselines),
        policy_options=compared.changes,
        gqa=compared.gqa,
        query_agnostic=query_agnostic,
        seed=seed,
        chat=chat,
        attention=attention,
        prefill_chunk=prefill_chunk,
        kv_cache_dtypes=parse_kv_cache_dtypes(kv_cache_dtype),
    )
    folder = GridFolder.default(model, query_agnostic) if output is None else GridFolder(output)
    if not dry_run:
        spread.check(folder, {"--needles": needles, "--haystack": haystack} | score_inputs(options.scores))
    load = load_to_plan if dry_run else load_model
    loaded = load(model, device=spread.device(device), dtype=dtype, device_map=device_map, quantization=quantization)
    if not dry_run:
        tell_other_model(compared.chosen, loaded)
    grid = NeedleGrid.build(loaded, options)
    if spread.is_first:
        tell_remarks(grid)
        tell_prompts(grid.prepared)
    if not dry_run:
        run(loaded, grid, folder, spread, together)
    elif spread.is_first:
        print_plan(loaded, grid, as_json)


def run(loaded: LoadedModel, grid: NeedleGrid, folder: GridFolder, spread: Spread, together: bool) -> None:
    """Measure what is left, write table and pictures, print the table; a part of a run leaves its rows alone."""

    asked = Evaluation(grid, folder, grid.describe(loaded), RowCheck(grid), frame_of(loaded, grid))

    def measure(journal: Journal, share: Share, progress: GridProgress) -> list[Row]:
        return run_grid(
            loaded, grid, journal, seconds=spread.seconds, together=together, on_trial=progress.update, share=share
        )

    made = run_spread(asked, spread, measure, partial(finished, folder, asked.frame))
    if made is not None:
        print_summary(folder, *made, spread.as_json)

"""`headprobe eval needles`: policies against each other, and against the full cache, on needles in haystacks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.evaluate.needles_output import (
    GridProgress,
    print_plan,
    print_summary,
    tell_remarks,
    write_files,
)
from headprobe.commands.interrupts import Orderly
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
    SinksOption,
    SummaryJsonOption,
    WindowOption,
    check_minutes,
)
from headprobe.commands.output import RESUME_HINT, tell_cut
from headprobe.commands.score_output import tell_prompts
from headprobe.compression.kv_cache_dtypes import AUTO, parse_kv_cache_dtypes
from headprobe.evaluation.needle_folder import GridFolder, RowCheck, summary_record
from headprobe.evaluation.needle_grid import GridOptions, NeedleGrid, is_finished, run_grid
from headprobe.evaluation.needle_summary import GridSummary
from headprobe.evaluation.variants import PolicyOptions, parse_budgets, policy_names
from headprobe.models.loading import LoadedModel, load_model, load_to_plan
from headprobe.probes.plan import parse_lengths


def needles_command(
    model: ModelOption = "demo",
    policies: PoliciesOption = "full,snapkv,ada-snapkv,headkv-r2",
    budgets: BudgetsOption = "16,32,64,128",
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
    together: Annotated[
        bool, typer.Option("--together", help="Decode a prompt's policies and budgets in batches; no time per token.")
    ] = False,
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
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    device_map: DeviceMapOption = None,
    quantization: QuantizationOption = None,
    dry_run: DryRunOption = False,
    as_json: SummaryJsonOption = False,
) -> None:
    """Compare policies at equal budgets: who still finds the needle, and what it costs."""
    check_minutes(minutes)
    options = GridOptions(
        policies=policy_names(policies),
        budgets=parse_budgets(budgets),
        lengths=None if lengths is None else parse_lengths(lengths),
        depths=depths,
        needles=needles,
        needles_per_cell=needles_per_cell,
        haystack=haystack,
        scores=tuple(scores or ()),
        baselines=() if baselines == "none" else tuple(name.strip() for name in baselines.split(",")),
        policy_options=PolicyOptions(window, pool, beta, sinks),
        gqa=gqa,
        query_agnostic=query_agnostic,
        seed=seed,
        chat=chat,
        attention=attention,
        prefill_chunk=prefill_chunk,
        kv_cache_dtypes=parse_kv_cache_dtypes(kv_cache_dtype),
    )
    folder = GridFolder.default(model, query_agnostic) if output is None else GridFolder(output)
    if not dry_run:
        read = {"--needles": needles, "--haystack": haystack}
        read |= {f"--scores ({number})": str(path) for number, path in enumerate(scores or (), 1)}
        folder.check(resume=resume, overwrite=overwrite, inputs=read)
    load = load_to_plan if dry_run else load_model
    loaded = load(model, device=device, dtype=dtype, device_map=device_map, quantization=quantization)
    grid = NeedleGrid.build(loaded, options)
    tell_remarks(grid)
    tell_prompts(grid.prepared)
    if dry_run:
        print_plan(loaded, grid, as_json)
    else:
        seconds = None if minutes is None else 60 * minutes
        run(
            loaded, grid, folder, resume=resume, overwrite=overwrite, seconds=seconds, together=together,
            as_json=as_json,
        )  # fmt: skip


def run(
    loaded: LoadedModel,
    grid: NeedleGrid,
    folder: GridFolder,
    *,
    resume: bool,
    overwrite: bool,
    seconds: float | None,
    together: bool,
    as_json: bool,
) -> None:
    """Measure what is left, write table and pictures, print the table."""
    with (
        Orderly(RESUME_HINT),
        folder.journal(grid.describe(loaded), resume=resume, overwrite=overwrite, check=RowCheck(grid)) as journal,
    ):
        if journal.was_cut:
            tell_cut(journal.path)
        left = [trial for trial in grid.trials() if not is_finished(journal, trial)]
        with GridProgress(grid, left) as progress:
            rows = run_grid(loaded, grid, journal, seconds=seconds, together=together, on_trial=progress.update)
        summary = GridSummary(tuple(rows))
        record = summary_record(loaded, grid, summary)
        write_files(folder, summary, record)
    print_summary(folder, summary, record, as_json)

"""`headprobe tune`: the smallest cache that keeps a share of the full cache's score on one's own prompts."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Annotated

import typer

from headprobe.commands.evaluate.needles_output import GridProgress, tell_remarks
from headprobe.commands.interrupts import Orderly
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    AttentionOption,
    ChatTemplateOption,
    DataDirOption,
    DeviceOption,
    DtypeOption,
    GqaOption,
    LayerChunkOption,
    LimitOption,
    MadeLengthsOption,
    ModelOption,
    OverwriteRunOption,
    PoliciesOption,
    QueryAgnosticOption,
    ResumeOption,
    ScoreFilesOption,
    SummaryJsonOption,
    score_inputs,
)
from headprobe.commands.output import RESUME_HINT, tell, tell_cut, write_json
from headprobe.commands.tune_output import print_tuned, record_of, write_tuned
from headprobe.errors import OptionError
from headprobe.evaluation.shares import unfinished
from headprobe.evaluation.task import TASKS, TaskRequest, parse_tasks
from headprobe.evaluation.task_folder import TaskRowCheck
from headprobe.evaluation.task_grid import TaskOptions
from headprobe.evaluation.task_trial import TaskTrial
from headprobe.evaluation.trials import Row
from headprobe.evaluation.tuning.kept_share import Candidate
from headprobe.evaluation.tuning.search import TuneFolder, TuneGrid, TuneOptions, policy_file_of, tune
from headprobe.evaluation.variants import check_scores_exist, parse_budgets, policy_names
from headprobe.home import in_home
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.plan import parse_lengths, whole_numbers


@observed
def tune_command(
    task: Annotated[str, typer.Option(help=f"{', '.join(TASKS)}, as `headprobe eval` takes them: jsonl:my.jsonl.")],
    keep: Annotated[float, typer.Option(help="Share of the full cache's score that has to stay.")] = 0.97,
    model: ModelOption = "demo",
    policies: PoliciesOption = "snapkv,ada-snapkv,headkv-r2",
    budgets: Annotated[
        str, typer.Option(help="Mean entries per KV head to try, window included.")
    ] = "16,32,64,128,256,512",
    windows: Annotated[
        str | None, typer.Option(help="Windows to try, such as 2,8; default: one, as usual.", show_default=False)
    ] = None,
    pools: Annotated[
        str | None, typer.Option(help="Widths of pooling to try, such as 7,49.", show_default=False)
    ] = None,
    betas: Annotated[str | None, typer.Option(help="Betas to try, such as 1.05,1.2.", show_default=False)] = None,
    scores: ScoreFilesOption = None,
    calibration: Annotated[float, typer.Option(help="Share of the clusters that the choice rests on.")] = 0.5,
    limit: LimitOption = None,
    data_dir: DataDirOption = None,
    lengths: MadeLengthsOption = None,
    query_agnostic: QueryAgnosticOption = False,
    gqa: GqaOption = "mean",
    attention: AttentionOption = "auto",
    prefill_chunk: LayerChunkOption = None,
    seed: Annotated[int, typer.Option(help="Which prompts are for the choice and which are held out.")] = 0,
    chat: ChatTemplateOption = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder; default tuned/<tasks>--<model>.", show_default=False
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteRunOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: SummaryJsonOption = False,
) -> None:
    """Find the smallest cache that keeps a share of the full cache's score, and prove it on prompts held out."""
    chosen = parse_tasks(task)
    asked = TaskRequest(
        data_dir=None if data_dir is None else in_home(data_dir),
        limit=limit,
        lengths=None if lengths is None else parse_lengths(lengths),
        seed=seed,
        chat=chat,
    )
    options = TuneOptions(
        task=TaskOptions(
            tasks=chosen,
            asked=asked,
            policies=policy_names(policies),
            budgets=parse_budgets(budgets),
            scores=tuple(scores or ()),
            gqa=gqa,
            query_agnostic=query_agnostic,
            attention=attention,
            prefill_chunk=prefill_chunk,
        ),
        keep=keep,
        windows=_whole(windows, "--windows"),
        pools=_whole(pools, "--pools"),
        betas=_numbers(betas, "--betas"),
        calibration=calibration,
    )
    check_scores_exist(options.task.policies, options.task.scores, model)
    folder = TuneFolder(_default_folder(model, options) if output is None else output)
    read = score_inputs(options.task.scores)
    read |= {f"the task {task.name}": wanted for task, wanted in chosen if task.name == "jsonl"}
    folder.check(resume=resume, overwrite=overwrite, inputs=read)
    sets = options.task.sets()
    loaded = load_model(model, device=device, dtype=dtype)
    grid = TuneGrid.build(loaded, options, sets)
    tell_remarks(grid.everything)
    for remark in grid.remarks():
        tell(f"note: {remark}")
    run(loaded, grid, folder, How(resume, overwrite, as_json))


@dataclass(frozen=True)
class How:
    """How a search goes on or begins, and what is printed."""

    resume: bool
    overwrite: bool
    as_json: bool


def run(loaded: LoadedModel, grid: TuneGrid, folder: TuneFolder, how: How) -> None:
    """Search what is left, prove the choice, write summary and policy file, print them."""
    check = TaskRowCheck(grid.everything)
    with (
        Orderly(RESUME_HINT),
        folder.journal(grid.describe(loaded), resume=how.resume, overwrite=how.overwrite, check=check) as journal,
    ):
        if journal.was_cut:
            tell_cut(journal.path, journal.dropped)
        left = unfinished(grid.search.trials(), journal)
        with GridProgress(grid.search, left) as progress:
            searched = {prompt.trial_id for prompt in grid.calibration}

            def update(trial: TaskTrial, row: Row) -> None:
                if trial.prompt.trial_id in searched:
                    progress.update(trial, row)

            tuned = tune(loaded, grid, journal, on_trial=update, on_choice=lambda choice: _tell_choice(grid, choice))
        made = policy_file_of(loaded, grid, tuned)
        record = record_of(loaded, grid, tuned, made)
        write_tuned(folder, grid, made, record, how.overwrite)
    if how.as_json:
        write_json({"path": str(folder.path), **record})
    else:
        print_tuned(folder, grid, tuned, record)


def _tell_choice(grid: TuneGrid, choice: Candidate) -> None:
    """What runs next, on stderr."""
    tell(f"chosen: {choice.label}, budget {choice.budget}; now the {len(grid.test)} prompts held out, and full on them")


def _default_folder(model: str, options: TuneOptions) -> Path:
    names = "+".join(dict.fromkeys(task.name for task, _ in options.task.tasks))
    return Path("tuned") / f"{names}--{short_name(model).replace('/', '--')}"


def _whole(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers from text such as `2,8`, each once; none where `text` is None."""
    found = () if text is None else whole_numbers(text, f"{option}: {{}} is not a whole number (write 2 or 2,8)")
    return tuple(dict.fromkeys(found))


def _numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Finite numbers from text such as `1.05,1.2`; none where `text` is None."""
    found = []
    for part in [] if text is None else [part.strip() for part in text.split(",")]:
        try:
            found.append(float(part))
        except ValueError:
            found.append(inf)
        if not isfinite(found[-1]):
            raise OptionError(f"{option}: {part!r:.40} is not a number (write 1.2 or 1.05,1.2)")
    return tuple(dict.fromkeys(found))

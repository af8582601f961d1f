"""`headprobe tune`: the smallest cache that keeps a share of the full cache's score on one's own prompts."""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.evaluate.needles_output import GridProgress, size, tell_remarks
from headprobe.commands.interrupts import Orderly
from headprobe.commands.options import (
    PAIRS,
    AttentionOption,
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    GqaOption,
    LayerChunkOption,
    ModelOption,
    QueryAgnosticOption,
    ResumeOption,
)
from headprobe.commands.output import RESUME_HINT, print_table, stdout_console, tell, tell_cut, write_json
from headprobe.compression.policies import POLICIES
from headprobe.errors import OptionError, OutputExistsError
from headprobe.evaluation.kept_share import percent
from headprobe.evaluation.policy_file import PolicyFile
from headprobe.evaluation.task import TASKS, TaskRequest, parse_tasks
from headprobe.evaluation.task_grid import SUMMARY, TaskOptions, TaskRowCheck, is_finished
from headprobe.evaluation.tune import POLICY, Candidate, Tuned, TuneFolder, TuneGrid, TuneOptions, policy_file_of, tune
from headprobe.evaluation.variants import check_scores_exist, parse_budgets, policy_names
from headprobe.home import in_home
from headprobe.models.catalog import short_name
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.plan import parse_lengths
from headprobe.scores.files import file_bytes, same_place, write_atomically

SCHEMA = "headprobe-tune/1"
COLUMNS = ("policy", "budget", "score", "of full", "at least", "KV held", "entries", "")
LEGEND = (
    "measured on the prompts for the choice; of full: share of the full cache's score; at least: its bound with 95 % "
    "confidence (bootstrap over texts); KV held: mean bytes of a cache, with room for the answer; entries: share of "
    "those of the full cache"
)


def tune_command(
    task: Annotated[str, typer.Option(help=f"{', '.join(TASKS)}, as `headprobe eval` takes them: jsonl:my.jsonl.")],
    keep: Annotated[float, typer.Option(help="Share of the full cache's score that has to stay.")] = 0.97,
    model: ModelOption = "demo",
    policies: Annotated[
        str, typer.Option(help=f"{', '.join(POLICIES)}, or {PAIRS}; with commas; all for every named one.")
    ] = "snapkv,ada-snapkv,headkv-r2",
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
    scores: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Score file; several by naming it again. Default: those in scores/.",
            show_default=False,
        ),
    ] = None,
    calibration: Annotated[float, typer.Option(help="Share of the texts that the choice rests on.")] = 0.5,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a search that is there.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
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
    read = {f"--scores ({number})": str(path) for number, path in enumerate(options.task.scores, 1)}
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
            tell_cut(journal.path)
        left = [trial for trial in grid.search.trials() if not is_finished(journal, trial)]
        with GridProgress(grid.search, left) as progress:
            held_out = {prompt.trial_id for prompt in grid.test}
            tuned = tune(
                loaded, grid, journal, lambda t, row: None if t.prompt.trial_id in held_out else progress.update(t, row)
            )
        made = policy_file_of(loaded, grid, tuned)
        record = record_of(loaded, grid, tuned, made)
        _write(folder, grid, made, record, how)
    if how.as_json:
        write_json({"path": str(folder.path), **record})
    else:
        _print(folder, grid, tuned, record)


def record_of(loaded: LoadedModel, grid: TuneGrid, tuned: Tuned, made: PolicyFile | None) -> dict[str, Any]:
    """The search as one JSON object. What was not measured is null."""
    options = grid.options
    verdict = tuned.verdict(options.keep)
    sides = {"calibration": grid.calibration, "held_out": grid.test}
    return {
        "schema": SCHEMA,
        "model": loaded.name,
        "dtype": loaded.dtype,
        "device": loaded.device.type,
        "sets": list(grid.everything.sets),
        "keep": options.keep,
        "seed": options.task.asked.seed,
        "query_agnostic": options.task.query_agnostic,
        "split": {
            side: {"prompts": len(own), "texts": len({prompt.cluster for prompt in own})} for side, own in sides.items()
        },
        "remarks": grid.remarks(),
        "candidates": [candidate.record() for candidate in tuned.candidates],
        "chosen": None if tuned.chosen is None else tuned.chosen.record(),
        "held_out": None if tuned.held_out is None else dict(vars(tuned.held_out)),
        "held_out_bytes": None if tuned.held_bytes is None else tuned.held_bytes[0],
        "held_out_full_bytes": None if tuned.held_bytes is None else tuned.held_bytes[1],
        "verdict": None if verdict is None else verdict[0],
        "reason": _nothing(tuned, options.keep) if verdict is None else verdict[1],
        "policy_file": None if made is None else made.record(),
    }


def _write(folder: TuneFolder, grid: TuneGrid, made: PolicyFile | None, record: dict[str, Any], how: How) -> None:
    """Summary, policy file, and beside it the head scores that it names."""
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder.file(SUMMARY), text.encode("utf-8", "backslashreplace"), overwrite=True)
    if made is None:
        folder.file(POLICY).unlink(missing_ok=True)
        return
    if made.scores is not None:
        path = next(
            variant.scores.path for variant in grid.everything.variants
            if variant.scores is not None and variant.scores.sha256 == made.scores.sha256
        )  # fmt: skip
        _copy(path, folder.file(made.scores.file), overwrite=how.overwrite)
    made.write(folder.file(POLICY), overwrite=True)


def _copy(source: Path, target: Path, overwrite: bool) -> None:
    """Put a copy of `source` at `target`, unless it lies there already. Raises `OutputExistsError` for another file."""
    data = file_bytes(source)
    if same_place(source, target) or (target.is_file() and file_bytes(target) == data):
        return
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target} is there and holds other scores than {source}; --overwrite replaces it")
    write_atomically(target, data, overwrite=overwrite)


# -- what is printed ------------------------------------------------------------------------------------------------


def _print(folder: TuneFolder, grid: TuneGrid, tuned: Tuned, record: dict[str, Any]) -> None:
    console, split = stdout_console(), record["split"]
    sides = [
        f"{split[side]['prompts']} prompts of {split[side]['texts']} texts" for side in ("calibration", "held_out")
    ]
    sets, verdict = ", ".join(record["sets"]), tuned.verdict(grid.options.keep)
    lines = [f"{record['model']}, {sets}: {sides[0]} for the choice, {sides[1]} held out", ""]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)
    print_table(COLUMNS, [_row(candidate, tuned) for candidate in tuned.candidates], right=COLUMNS[1:7])
    lines = ["", LEGEND, ""]
    if tuned.chosen is None or verdict is None:
        lines += [_nothing(tuned, grid.options.keep), "", f"written to {folder.path}/"]
    else:
        lines.append(f"chosen: {tuned.chosen.label}, budget {tuned.chosen.budget}")
        lines.append(f"held out, {percent(grid.options.keep)} wanted: {verdict[0].upper()}. It keeps {verdict[1]}"
                     if tuned.held_out else f"held out: {verdict[0].upper()}. {verdict[1]}")  # fmt: skip
        if tuned.held_bytes is not None:
            own, full = tuned.held_bytes
            lines.append(f"it holds {size(own)}, {percent(own / full)} of the full cache's {size(full)}")
        lines += ["", f"written to {folder.path}/; use it with --policy-file {folder.file(POLICY)}"]
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _row(candidate: Candidate, tuned: Tuned) -> tuple[object, ...]:
    kept = candidate.on_calibration
    if kept is None:
        return candidate.label, candidate.budget, None, None, None, None, None, "out of memory"
    mark = "chosen" if candidate == tuned.chosen else "" if candidate.evicts else "evicts nothing"
    return (
        candidate.label,
        candidate.budget,
        f"{100 * kept.score:.1f}",
        percent(kept.share),
        percent(kept.low),
        size(candidate.kv_bytes),
        None if candidate.entries_share is None else percent(candidate.entries_share),
        mark,
    )


def _nothing(tuned: Tuned, keep: float) -> str:
    """In words that no candidate keeps enough, and which comes nearest."""
    tried = [(c.on_calibration.low, c) for c in tuned.candidates if c.on_calibration is not None and c.evicts]
    nearest = max(tried, key=lambda pair: pair[0], default=None)
    found = f"none of {len(tuned.candidates)} caches keeps {percent(keep)} of the full score with 95 % confidence"
    if nearest is None:
        return f"{found}: none evicts anything"
    low, best = nearest
    return f"{found}; nearest is {best.label} at {best.budget} with at least {percent(low)}. The held-out prompts were not run"


def _default_folder(model: str, options: TuneOptions) -> Path:
    names = "+".join(dict.fromkeys(task.name for task, _ in options.task.tasks))
    return Path("tuned") / f"{names}--{short_name(model).replace('/', '--')}"


def _whole(text: str | None, option: str) -> tuple[int, ...]:
    """Whole numbers from text such as `2,8`; none where there is no text."""
    parts = [] if text is None else [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isdecimal() and part.isascii() and len(part) < 10):
            raise OptionError(f"{option}: {part!r:.40} is not a whole number (write 2 or 2,8)")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _numbers(text: str | None, option: str) -> tuple[float, ...]:
    """Finite numbers from text such as `1.05,1.2`; none where there is no text."""
    found = []
    for part in [] if text is None else [part.strip() for part in text.split(",")]:
        try:
            found.append(float(part))
        except ValueError:
            found.append(inf)
        if not isfinite(found[-1]):
            raise OptionError(f"{option}: {part!r:.40} is not a number (write 1.2 or 1.05,1.2)")
    return tuple(dict.fromkeys(found))

"""`headprobe score`: measure which heads of a model look at the answer."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Annotated, Any

import orjson
import typer

from headprobe.commands.interrupts import Orderly
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    ChatTemplateOption,
    DepthsOption,
    DeviceMapOption,
    DeviceOption,
    DtypeOption,
    HaystackOption,
    ModelOption,
    NeedlesPerCellOption,
    QuantizationOption,
    ResumeOption,
    ShardOption,
    TensorParallelOption,
)
from headprobe.commands.output import RESUME_HINT, tell, tell_cut
from headprobe.commands.placed import placed
from headprobe.commands.reading import one_length
from headprobe.commands.score_output import (
    ScoreProgress,
    print_plan,
    print_scores,
    print_shard,
    tell_prompts,
    tell_stability,
)
from headprobe.errors import OptionError
from headprobe.home import in_home
from headprobe.models.loading import PlacementOptions, load_model, load_to_plan
from headprobe.probes.plan import parse_lengths
from headprobe.probes.reading import any_prompt_record
from headprobe.profiling.estimators import DEFAULT_METHOD, ESTIMATORS, estimators
from headprobe.profiling.job import ScoreJob, ScoreOptions, Watch, prepare
from headprobe.profiling.preflight import check_outputs, journal_path, output_paths, run_cost
from headprobe.profiling.ranks import Ranks, asked_shard
from headprobe.profiling.run import run, run_in_step, run_ranks
from headprobe.scores.files import check_place, refuse_one_place, write_atomically

# The command line that a score file keeps: what was typed, fit to be typed again.

FILES = {"output", "dump_prompts", "log_json", "profile"}
NOT_RECORDED = {"shard"}  # scores are those of all parts
PLACES = {"model", "needles", "haystack"}  # a name, or a file or folder


def recorded_command(context: typer.Context) -> str:
    """The options that were given on the command line, in a form that a shell reads as the same options.

    Files and folders appear only with their last part: a score file must not reveal a machine's folders.
    """
    words = ["headprobe", *context.command_path.split()[1:]]
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE" and parameter.name not in NOT_RECORDED:
            words += _words(parameter, context.params[parameter.name or ""])
    return " ".join(map(shlex.quote, words))


def _words(parameter: Any, value: Any) -> Iterator[str]:
    option = max(parameter.opts, key=len)
    if getattr(parameter, "is_flag", False):
        yield option if value else max(parameter.secondary_opts, key=len)
        return
    for each in value if isinstance(value, list | tuple) else [value]:
        word = without_folders(parameter.name, str(each))
        yield from (f"{option}={word}",) if word.startswith("-") else (option, word)


def without_folders(name: str, value: str) -> str:
    """The value of the option `name` without a machine's folders; a hub id stays whole, and a folder one (`results/`).

    >>> without_folders("output", "/home/ada/a b.json"), without_folders("model", "org/name")
    ('a b.json', 'org/name')
    """
    looks_local = value[:1] in "./~\\" or value.count("/") > 1 or bool(PureWindowsPath(value).drive)
    if name not in FILES and not (name in PLACES and (looks_local or Path(value).exists())):
        return value
    last = _last_part(value)
    is_folder = name == "output" and (value.endswith("/") or in_home(value).is_dir())
    return f"{last}/" if is_folder else last


def _last_part(value: str) -> str:
    part = PureWindowsPath(PurePosixPath(value).name).name
    if part in ("", ".."):
        part = PurePath(os.path.realpath(in_home(value))).name
    return part or "."


@observed
def score_command(
    context: typer.Context,
    model: ModelOption = "demo",
    method: Annotated[
        str, typer.Option(help=f"{', '.join(ESTIMATORS)}; several, separated by commas.")
    ] = DEFAULT_METHOD,
    needles: Annotated[
        str | None, typer.Option(help="Needle set or .jsonl file; default: what the method uses.")
    ] = None,
    haystack: HaystackOption = "all",
    lengths: Annotated[str | None, typer.Option(help="Context lengths in tokens, such as 512,1k,2k.")] = None,
    max_length: Annotated[str | None, typer.Option(help="Longest length; default: the model's window.")] = None,
    num_lengths: Annotated[int, typer.Option(help="How many lengths, spread evenly up to the longest.")] = 5,
    depths: DepthsOption = 10,
    needles_per_cell: NeedlesPerCellOption = 2,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", help="Score file (folder for several); default scores/<model>--<method>.json."),
    ] = None,
    resume: ResumeOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    seed: Annotated[int, typer.Option(help="Choice of needles and where the haystack begins.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most N trials of each kind, spread evenly.")] = None,
    until_stable: Annotated[
        int | None, typer.Option(metavar="K", help="Stop early, once the best K heads are stable.")
    ] = None,
    steps: Annotated[
        str, typer.Option(help="Tokens that are scored: answer, or published (50, as the code of retrieval does).")
    ] = "answer",
    chat: ChatTemplateOption = True,
    trials: Annotated[bool, typer.Option("--trials/--no-trials", help="Keep every trial's scores in the file.")] = True,
    prefill_chunk: Annotated[int, typer.Option(help="Tokens that go through the model at a time.")] = 8192,
    tensor_parallel: TensorParallelOption = False,
    device_map: DeviceMapOption = None,
    quantization: QuantizationOption = None,
    dump_prompts: Annotated[Path | None, typer.Option(help="Write every trial's prompt to this JSONL file.")] = None,
    shard: ShardOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object (a list of them for several methods).")
    ] = False,
) -> None:
    """Find the heads that retrieve: probe MODEL with needles in haystacks and write a score file."""
    methods = tuple(e.name for e in estimators(method))
    ranks = Ranks.of_environment()
    placement: PlacementOptions = {
        "tensor_parallel": tensor_parallel, "device_map": device_map, "quantization": quantization,
    }  # fmt: skip
    context.with_resource(placed(ranks, placement))
    options = ScoreOptions(
        methods=methods,
        needles=needles,
        haystack=haystack,
        lengths=None if lengths is None else parse_lengths(lengths),
        max_length=None if max_length is None else one_length(max_length, "--max-length"),
        num_lengths=num_lengths,
        depths=depths,
        needles_per_cell=needles_per_cell,
        seed=seed,
        limit=limit,
        chat=chat,
        with_trial_scores=trials,
        prefill_chunk=_at_least(prefill_chunk, 1, "--prefill-chunk"),
        until_stable=until_stable,
        shard=asked_shard(shard, None if tensor_parallel else ranks),
        steps=steps,
    )
    paths = output_paths(model, methods, output)
    inputs = {"--needles": needles, "--haystack": haystack}
    is_first = ranks is None or ranks.rank == 0
    if not dry_run and (is_first or not tensor_parallel):  # of ranks that share heads the first alone writes
        parts = (options.shard, None) if ranks is not None and is_first and not tensor_parallel else (options.shard,)
        for part in parts:  # rank 0 writes the whole, too
            check_outputs(
                paths, resume=resume, overwrite=overwrite, prompts=dump_prompts if is_first else None, inputs=inputs,
                shard=part,
            )  # fmt: skip
    elif dump_prompts is not None:
        refuse_one_place({"--dump-prompts": dump_prompts}, inputs)
        check_place(dump_prompts, overwrite or resume)
    load = load_to_plan if dry_run and not tensor_parallel else load_model
    loaded = load(model, device=device if ranks is None else ranks.device(device), dtype=dtype, **placement)
    job = prepare(loaded, options)
    if is_first:
        tell_prompts(job)
    if dump_prompts is not None and is_first:
        _dump(job, dump_prompts, overwrite)
    if dry_run:
        cost = run_cost(loaded, job.prompts, options.prefill_chunk)
        if is_first:
            print_plan(loaded, job, cost, as_json)
        return
    work = run if ranks is None else partial(run_in_step if tensor_parallel else run_ranks, ranks)
    with Orderly(RESUME_HINT), ScoreProgress(job, shown=is_first) as progress:
        watch = Watch(on_trial=progress.update, on_resume=progress.resumed, on_cut=tell_cut)
        command = recorded_command(context)
        result = work(loaded, job, paths, resume=resume, overwrite=overwrite, watch=watch, command=command)
    if not is_first:
        return
    for trial, reason in result.skipped.items():
        tell(f"skipped {trial}: {reason}")
    if until_stable is not None:
        tell_stability(result.scores, until_stable, len(job.prompts))
    if shard is not None and options.shard is not None:
        print_shard(job, options.shard.journal(journal_path(paths)), as_json)
        return
    print_scores([(scores, paths[name]) for name, scores in result.scores.items()], as_json)


def _at_least(value: int, least: int, option: str) -> int:
    if value < least:
        raise OptionError(f"{option} is {value}, need at least {least}")
    return value


def _dump(job: ScoreJob, path: Path, overwrite: bool) -> None:
    """Write the prompts; a resumed run finds its own there already."""
    lines = b"".join(orjson.dumps(any_prompt_record(prompt)) + b"\n" for prompt in job.prompts)
    if not (path.is_file() and path.read_bytes() == lines):
        write_atomically(path, lines, overwrite=overwrite)
    tell(f"{len(job.prompts)} prompts in {path}")

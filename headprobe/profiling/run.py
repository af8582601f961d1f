"""`headprobe.score(...)`: from options to score files, the whole way in one call."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from headprobe.errors import FileFormatError, NoPassingTrialError, OutputExistsError
from headprobe.events import PLAN, emit
from headprobe.models.loading import LoadedModel, load_model
from headprobe.profiling.estimators import estimators
from headprobe.profiling.gathering import ScoreFrame, ScoreRun, gather
from headprobe.profiling.job import Record, ScoreJob, ScoreOptions, Watch, prepare
from headprobe.profiling.journal import Journal
from headprobe.profiling.preflight import check_outputs, journal_path, output_paths
from headprobe.profiling.ranks import Ranks
from headprobe.profiling.scoring import finished_trials, run_shard, score_prompts, score_until_stable
from headprobe.profiling.shards import (
    clear_journals,
    drop_collected,
    finished_beside,
    finished_elsewhere,
    has_run,
    joined,
    shard_journals,
)
from headprobe.scores.files import check_place, refuse_one_place
from headprobe.scores.head_scores import HeadScores
from headprobe.scores.score_file import holds, write_score_file
from headprobe.stages import timed


def score(
    model: str | LoadedModel = "demo",
    options: ScoreOptions | None = None,
    *,
    output: Path | str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    dtype: str = "auto",
    on_trial: Callable[[Record], None] | None = None,
) -> ScoreRun:
    """Score the heads of `model` and write a score file for each method; returns the scores too.

    `model`: an alias, folder, hub id or a model from `load_model`. `output`: the file (with several methods a folder);
    default `scores/<model>--<method>.json`. Finished trials go to a journal next to it, from which `resume=True`
    continues after an interruption. Raises the errors of `headprobe.errors`.

    Example: `headprobe.score("demo", ScoreOptions(lengths=(512,)), output="demo.json").scores["r2"].top(10)`
    """
    chosen = options or ScoreOptions()
    name = model if isinstance(model, str) else model.name
    paths = output_paths(name, [e.name for e in estimators(chosen.methods)], output)
    check_outputs(paths, resume=resume, overwrite=overwrite, shard=chosen.shard)
    with timed():
        loaded = load_model(model, device=device, dtype=dtype) if isinstance(model, str) else model
        watch = Watch(on_trial=on_trial)
        return run(loaded, prepare(loaded, chosen), paths, resume=resume, overwrite=overwrite, watch=watch)


def run(
    loaded: LoadedModel,
    job: ScoreJob,
    paths: dict[str, Path],
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    command: str | None = None,
) -> ScoreRun:
    """Run a prepared job and write one score file per method to `paths`; a shard leaves its journal alone.

    With `resume` the trials of the journal and of shards' journals beside it are kept, with `overwrite` alone they are
    not; when the files are written the journals go. Raises `NoPassingTrialError` when a method has no passing trial,
    after the files of the others are written.
    """
    shard = job.options.shard
    check_outputs(paths, resume=resume, overwrite=overwrite, shard=shard)
    whole, plan, check = journal_path(paths), job.description(loaded), job.record_check(loaded)
    place = whole if shard is None else shard.journal(whole)
    if shard is None and overwrite and not resume:
        clear_journals(shard_journals(whole))
    frame = None if shard is None else ScoreFrame.of(loaded, job, command).record()
    with Journal.open(place, plan, resume=resume, overwrite=overwrite, check=check, frame=frame) as journal:
        if journal.was_cut and watch.on_cut is not None:
            watch.on_cut(journal.path, journal.dropped)
        if shard is not None:
            done = finished_beside(whole, place, plan, check) if resume else {}
            _emit_plan(loaded, job, journal, done)
            return run_shard(loaded, job, journal, done, watch=watch)
        shards = shard_journals(whole)
        _take_over(journal, finished_elsewhere(shards if resume else [], plan, check, on_cut=watch.on_cut).values())
        _check_replacing(paths, job, journal, overwrite=overwrite)
        _emit_plan(loaded, job, journal)
        work = score_prompts if job.options.until_stable is None else score_until_stable
        result = work(loaded, job, journal, watch=watch, command=command)
        for name, scores in result.scores.items():
            _write(paths[name], scores, job.options.with_trial_scores, resume=resume, overwrite=overwrite)
        if not result.skipped or not result.unanswered:
            drop_collected(shards)
            journal.discard()
    refuse_unanswered(result, paths)
    return result


def merge_parts(
    journals: Sequence[Path], output: Path | str, *, overwrite: bool = False
) -> tuple[ScoreRun, dict[str, Path]]:
    """The score files of a run whose parts left these journals, as the run that collects would write them, and where
    they are. Neither the model nor the needles need be there; the journals are left as they are.

    `output`: as in `score`. Raises as `joined`, `ResumeError` where a trial is missing, `OutputExistsError`, and
    `NoPassingTrialError` as `run`.
    """
    parts = joined(journals)
    try:
        frame = ScoreFrame.of_record(parts.frame)
    except ValueError as error:
        raise FileFormatError(str(error), parts.paths[0], 1) from None
    methods = [estimator.name for estimator in frame.estimators]
    paths = output_paths(next(iter(frame.provenance.values())).model.id, methods, output)
    refuse_one_place(
        {f"the output of {method}": path for method, path in paths.items()},
        {f"input {number}": path for number, path in enumerate(journals, 1)},
    )
    for path in paths.values():
        check_place(path, overwrite)
    parts.refuse_incomplete(frame.trial_ids, frame.check)
    result = gather(frame, parts.records)
    for name, scores in result.scores.items():
        _write(paths[name], scores, frame.with_trial_scores, resume=False, overwrite=overwrite)
    refuse_unanswered(result, paths)
    return result, paths


def refuse_unanswered(result: ScoreRun, paths: dict[str, Path]) -> None:
    """Raise `NoPassingTrialError` where a method has no passing trial; the files of the others are written."""
    if result.unanswered:
        written = ", ".join(str(paths[name]) for name in result.scores)
        told = next(iter(result.unanswered.values()))
        raise NoPassingTrialError(f"{told} (other methods: {written})" if written else told)


def collect(
    loaded: LoadedModel,
    job: ScoreJob,
    paths: dict[str, Path],
    records: Iterable[Record],
    *,
    overwrite: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    command: str | None = None,
) -> ScoreRun:
    """Write the score files of a job whose trials ran in shards: `records` are theirs. What is missing is run.

    Raises as `run`.
    """
    whole = replace(job, options=replace(job.options, shard=None))
    plan, check = whole.description(loaded), whole.record_check(loaded)
    with Journal.resume(journal_path(paths), plan, check) as journal:
        _take_over(journal, records)
    return run(loaded, whole, paths, resume=True, overwrite=overwrite, watch=watch, command=command)


def run_ranks(
    ranks: Ranks,
    loaded: LoadedModel,
    job: ScoreJob,
    paths: dict[str, Path],
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    command: str | None = None,
) -> ScoreRun:
    """Run a job in the processes that torchrun started, whose shard it states. On rank 0 it gives what `run` gives of
    the whole job, on the others what their shard gave. Trials travel over the network: no folder need be shared.

    Raises as `run`.
    """
    with ranks.together():
        ranks.agree(job.description(loaded))
        if ranks.rank == 0 and overwrite and not resume:
            whole = journal_path(paths)
            clear_journals([whole, *shard_journals(whole)])
        ranks.wait()
        part = run(loaded, job, paths, resume=resume, overwrite=overwrite, watch=watch, command=command)
        records = ranks.gathered(part.records)
    if records is None:
        return part
    return collect(loaded, job, paths, records, overwrite=overwrite, command=command)


def _emit_plan(loaded: LoadedModel, job: ScoreJob, journal: Journal, elsewhere: Collection[str] = ()) -> None:
    """What this process has before it: `trials` are its own, of `planned` ones."""
    own = {prompt.trial_id for prompt in job.own_prompts}
    done = len(own & (finished_trials(journal) | set(elsewhere)))
    shard = None if job.options.shard is None else str(job.options.shard)
    emit(
        PLAN, work="score", model=loaded.name, methods=list(job.options.methods), shard=shard, trials=len(own),
        done=done, planned=len(job.prompts),
    )  # fmt: skip


def run_in_step(
    ranks: Ranks,
    loaded: LoadedModel,
    job: ScoreJob,
    paths: dict[str, Path],
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch = Watch(),  # noqa: B008 - frozen
    command: str | None = None,
) -> ScoreRun:
    """Run a job on a model whose heads lie on the processes that torchrun started (`tensor_parallel`).

    All measure the same trials in the same order; rank 0 alone reads and writes files, and gives what `run` gives.
    Raises as `run`.
    """
    known = ranks.from_first(_known_records(loaded, job, paths) if ranks.rank == 0 and resume else ())
    if ranks.rank == 0:
        return run(loaded, job, paths, resume=resume, overwrite=overwrite, watch=watch, command=command)
    with TemporaryDirectory() as folder:
        own = {method: Path(folder) / path.name for method, path in paths.items()}
        whole, shard = journal_path(own), job.options.shard
        place = whole if shard is None else shard.journal(whole)
        with Journal.start(place, job.description(loaded)) as journal:
            _take_over(journal, known)
        return run(loaded, job, own, resume=True, watch=watch, command=command)


def _known_records(loaded: LoadedModel, job: ScoreJob, paths: dict[str, Path]) -> list[Record]:
    """The finished trials that a resumed run will find."""
    found = finished_beside(journal_path(paths), None, job.description(loaded), job.record_check(loaded))
    return list(found.values())


def _take_over(journal: Journal, records: Iterable[Record]) -> None:
    """Put the finished trials of other journals into this one."""
    done = finished_trials(journal)
    found = {record["trial"]: record for record in records if has_run(record) and record["trial"] not in done}
    journal.add_all(list(found.values()))


def _check_replacing(paths: dict[str, Path], job: ScoreJob, journal: Journal, *, overwrite: bool) -> None:
    """A resumed run that still has work to do must be able to write its files in the end."""
    there = [path for path in paths.values() if path.exists()]
    left = {prompt.trial_id for prompt in job.prompts} - finished_trials(journal)
    if there and left and not overwrite:
        raise OutputExistsError(
            f"{there[0]} exists and would be replaced: move it away, or add --overwrite to --resume "
            f"({len(left)} of {len(job.prompts)} trials are left)"
        )


def _write(path: Path, scores: HeadScores, with_trial_scores: bool, *, resume: bool, overwrite: bool) -> None:
    """Write a score file, unless a run that was killed after writing it left the very same one."""
    if not (resume and path.exists() and holds(path, scores, with_trial_scores)):
        write_score_file(path, scores, overwrite=overwrite, with_trial_scores=with_trial_scores)

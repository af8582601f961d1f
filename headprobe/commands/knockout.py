"""`headprobe knockout`: switch the best heads of a score file off, and see what that costs against random ones."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from headprobe.commands.interrupts import Orderly
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    ChatTemplateOption,
    DepthsOption,
    DeviceOption,
    DtypeOption,
    HaystackOption,
    NeedlesPerCellOption,
    ResumeOption,
)
from headprobe.commands.output import (
    RESUME_HINT,
    Pace,
    Tenths,
    print_table,
    stdout_console,
    tell,
    tell_cut,
    told_seconds,
    write_json,
)
from headprobe.commands.picture_output import PictureFile, figures
from headprobe.commands.score_output import tell_prompts
from headprobe.evaluation.knockout.bench import METRICS, KnockoutOptions, record_kind
from headprobe.evaluation.knockout.checks import check_heads, model_of
from headprobe.evaluation.knockout.folder import (
    PICTURE,
    SUMMARY,
    KnockoutFolder,
    check_writing,
    told_place,
    write_result,
)
from headprobe.evaluation.knockout.head_orders import parse_top
from headprobe.evaluation.knockout.study import KnockoutResult, KnockoutStudy
from headprobe.evaluation.knockout.switched_off import MODES
from headprobe.evaluation.knockout.verdict import Step
from headprobe.models.catalog import short_name
from headprobe.models.loading import load_model
from headprobe.probes.plan import parse_lengths
from headprobe.profiling.journal import Journal
from headprobe.scores.any_scores import AnyScores, read_any
from headprobe.scores.files import write_atomically
from headprobe.scores.score_file import newest_score_file
from headprobe.scores.uncertainty import Estimate

NAMES = {
    "answered": "answered, %",
    "answer_loss": "loss of the answer, nats per token",
    "text_loss": "change of the loss on plain text, nats per token",
}
CHANGES = ("text_loss",)  # texts differ more than sets of heads do: changes of each text say more than means
COLUMNS = ("off", "top", "95 %", "random", "95 %", "draws", "difference", "95 %")


@observed
def knockout_command(
    scores: Annotated[
        Path | None,
        typer.Argument(help="The score file, native or foreign; default: the newest in scores/.", show_default=False),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Alias, local folder or hub id; default: the one that the file names.", show_default=False),
    ] = None,
    mode: Annotated[
        str, typer.Option(help=f"{', '.join(MODES)}: hide the answer from the heads, or replace what they put out.")
    ] = "mask",
    top: Annotated[
        str | None,
        typer.Option(help="How many of the best heads; default: 1,2,5,10,20,50, or all.", show_default=False),
    ] = None,
    draws: Annotated[int, typer.Option(help="Sets of as many random heads of the same layers.")] = 5,
    needles: Annotated[
        str | None,
        typer.Option(help="Needle set or .jsonl file; default: the set of the score file.", show_default=False),
    ] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Context lengths in tokens; default: 1k, or the window.", show_default=False)
    ] = None,
    depths: DepthsOption = 10,
    needles_per_cell: NeedlesPerCellOption = 3,
    haystack: HaystackOption = "all",
    limit: Annotated[int | None, typer.Option(help="At most N prompts, spread over the grid.", metavar="N")] = None,
    seed: Annotated[int, typer.Option(help="Choice of needles, haystack's beginning, random heads.")] = 1,
    batch: Annotated[
        int | None,
        typer.Option(help="Sets of heads that go through a prompt together; default: up to 16.", show_default=False),
    ] = None,
    chat: ChatTemplateOption = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="DIR",
            help="Folder; default evals/knockout--<scores>--<mode>.",
            show_default=False,
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run, and with --write a result, that is there.")
    ] = False,
    write: Annotated[bool, typer.Option("--write", help="Put the result into the score file, as `causal`.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Switch the best heads off: what does that cost on needles and on plain text, against random heads?"""
    options = KnockoutOptions(
        mode=mode,
        top=None if top is None else parse_top(top),
        draws=draws,
        needles=needles,
        lengths=None if lengths is None else parse_lengths(lengths),
        depths=depths,
        needles_per_cell=needles_per_cell,
        haystack=haystack,
        seed=seed,
        limit=limit,
        chat=chat,
        batch=batch,
    )
    given = read_any(scores or newest_score_file())
    name = model_of(given, model)
    if write:
        check_writing(given, mode, overwrite)
    folder = KnockoutFolder.default(given, mode) if output is None else KnockoutFolder(output)
    inputs = {"the score file": given.path, "--needles": needles, "--haystack": haystack}
    folder.check(resume=resume, overwrite=overwrite, inputs=inputs)
    check_heads(given, options, name)
    loaded = load_model(name, device=device, dtype=dtype)
    study = KnockoutStudy.build(loaded, given, options)
    tell_prompts(study.bench.job)
    for note in study.notes:
        tell(f"note: {note}")
    result = run(study, folder, resume=resume, overwrite=overwrite)
    if write:
        write_result(given, result, overwrite)
    print_result(folder, result, given if write else None, as_json)


def run(study: KnockoutStudy, folder: KnockoutFolder, *, resume: bool, overwrite: bool) -> KnockoutResult:
    """Measure what is left, and write summary and picture."""
    with Orderly(RESUME_HINT), folder.journal(study, resume=resume, overwrite=overwrite) as journal:
        if journal.was_cut:
            tell_cut(journal.path, journal.dropped)
        with KnockoutProgress(study, journal) as progress:
            result = study.run(journal, progress.update)
        record = result.record()
        text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        write_atomically(folder.file(SUMMARY), text.encode(), overwrite=True)
        _draw(folder, record)
    return result


def _draw(folder: KnockoutFolder, record: dict[str, Any]) -> None:
    title = f"{record['model']}: answers without its best heads"
    PictureFile(folder.file(PICTURE), "png", overwrite=True).write(lambda: figures().knockout_figure(record, title))


class KnockoutProgress:
    """Work done and time left on stderr: a bar on a terminal, else a line at every tenth of the work, and at the latest
    after two minutes.

    The time left goes by head sets, prompts and texts apart: texts, whose every token has logits, can take ten times as
    long, and the model with all heads is asked alone.
    """

    def __init__(self, study: KnockoutStudy, journal: Journal) -> None:
        self._study, self._journal = study, journal
        self._sizes = [len(batch) for batch in study.bench.batches(study.sets.values())]
        self._count()
        self._place = told_place(study)
        self._is_terminal = sys.stderr.isatty()
        self._began = self._last = monotonic()
        self._lines, self._pace = Tenths(self._done, self._total, self._began), Pace()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TextColumn("{task.fields[left]} left"), console=Console(stderr=True), disable=not self._is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("knockout", total=self._total, completed=self._done, left="-")

    def _count(self) -> None:
        """What there is to do: less, once it is known which prompts the whole model answers."""
        due = self._study.bench.records_due(self._study.sets.values(), self._journal.records)
        left = [record_kind(name) for name in due if name not in self._journal.records]
        self._total, self._done = len(due), len(due) - len(left)
        self._left: dict[str, int] = {}
        for kind, batch in left:
            self._left[kind] = self._left.get(kind, 0) + self._sizes[batch]

    def update(self, record: dict[str, Any]) -> None:
        """Count a piece of work: one prompt or text under one batch of sets."""
        now, (kind, batch) = monotonic(), record_kind(record["trial"])
        self._pace.took(kind, self._sizes[batch], now - self._last)
        self._last = now
        self._count()
        left = told_seconds(self._pace.left(self._left))
        self._bar.update(self._task, completed=self._done, total=self._total, left=left)
        if not self._is_terminal and self._lines.is_due(self._done, self._total, now):
            tell(f"{self._done} of {self._total} pieces, {told_seconds(now - self._began)} so far, about {left} left")

    def __enter__(self) -> KnockoutProgress:
        if not self._is_terminal:
            place = self._place
            tell(
                f"{place['prompts']} prompts of {place['needles']} needles, {place['sets']} sets of heads in "
                f"{place['batches']} batches: {self._total} pieces of work, {self._done} of them done"
            )
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if not self._bar.disable:  # older releases of rich print an empty line for a bar that was never shown
            self._bar.stop()


# -- results --------------------------------------------------------------------------------------------------------


def print_result(folder: KnockoutFolder, result: KnockoutResult, written: AnyScores | None, as_json: bool) -> None:
    """The tables and the verdict, or with `as_json` the record; `written`: the score file that holds the result now."""
    record = result.record()
    if as_json:
        write_json({"path": str(folder.path), "written_to": None if written is None else str(written.path), **record})
        return
    bench, console = result.study.bench, stdout_console()
    lengths = ", ".join(f"{length:,}" for length in record["lengths"])
    head = (
        f"{short_name(bench.loaded.name)}, heads off by {record['mode']}; {record['num_asked']} prompts of {lengths} "
        f"tokens with {record['needles']['name']} needles, of which it answers {record['num_prompts']} with all heads "
        f"on; {record['draws']} draws"
    )
    console.print(head, soft_wrap=True, markup=False)
    for metric, name in NAMES.items():
        if result.whole[metric].mean is not None:
            console.print(f"\n{name} (all heads on: {_figure(result.whole[metric].mean, metric)})\n", markup=False)
            print_table(COLUMNS, [step_row(step, metric) for step in result.steps], right=COLUMNS)
    console.print(f"\n{result.verdict.text}", soft_wrap=True, markup=False)
    console.print(f"\nwritten to {folder.path}/", soft_wrap=True, markup=False)
    if written is not None:
        console.print(f"and, as `causal`, into {written.path}", soft_wrap=True, markup=False)


def step_row(step: Step, metric: str) -> tuple[str, ...]:
    """One line of a table of one of `METRICS`: what is left without the best heads, and without random ones."""
    assert metric in METRICS
    change = metric in CHANGES
    top = step.changes["top"][metric] if change else step.top[metric]
    random = (step.changes.get("random", {}) if change else step.random or {}).get(metric, Estimate())
    apart = (step.difference or {}).get(metric, Estimate())
    draws = (step.draws or {}).get(metric, [])
    if change:
        whole = (step.top[metric].mean or 0.0) - (top.mean or 0.0)
        draws = [draw - whole for draw in draws]
    sign = "+" if change else "-"
    span = f"{_figure(min(draws), metric, sign)} to {_figure(max(draws), metric, sign)}" if draws else ""
    return (
        str(step.k),
        _figure(top.mean, metric, sign),
        _interval(top, metric, sign),
        _figure(random.mean, metric, sign),
        _interval(random, metric, sign),
        span,
        _figure(apart.mean, metric, sign="+"),
        _interval(apart, metric, sign="+"),
    )


def _figure(value: float | None, metric: str, sign: str = "-") -> str:
    if value is None:
        return ""
    if metric == "answered":
        return f"{round(100 * value) or 0:{sign}}"
    return f"{round(value, 2) or 0.0:{sign}.2f}"


def _interval(found: Estimate, metric: str, sign: str = "-") -> str:
    if found.low is None:
        return ""
    return f"{_figure(found.low, metric, sign)} to {_figure(found.high, metric, sign)}"

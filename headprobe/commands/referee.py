"""`headprobe referee`: all detectors on one model, and which of them names the heads that the answers need."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from headprobe.commands.evaluate.needles_output import told_seconds
from headprobe.commands.interrupts import Orderly
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    ChatTemplateOption,
    DeviceOption,
    DtypeOption,
    GqaOption,
    HaystackOption,
    ModelOption,
    OverwriteRunOption,
    ResumeOption,
)
from headprobe.commands.output import RESUME_HINT, print_table, stdout_console, tell, tell_cut, write_json
from headprobe.commands.picture_output import PictureFile, figures
from headprobe.commands.reading import one_length
from headprobe.errors import OptionError
from headprobe.evaluation.knockout.verdict import FEWEST_NEEDLES
from headprobe.evaluation.referee.folder import PICTURE, RESULT, TABLE, RefereeFolder
from headprobe.evaluation.referee.given import given_notes, read_given
from headprobe.evaluation.referee.options import RefereeOptions
from headprobe.evaluation.referee.plan import RefereePlan
from headprobe.evaluation.referee.result import RefereeResult, Verdict
from headprobe.evaluation.referee.run import Referee, RefereeWatch
from headprobe.models.loading import load_model
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import ESTIMATORS, estimators
from headprobe.scores.files import write_atomically
from headprobe.scores.uncertainty import Estimate

ALL = "all"


@observed
def referee_command(
    model: ModelOption = "demo",
    detectors: Annotated[str, typer.Option(help=f"{', '.join(ESTIMATORS)}; with commas; all for every one.")] = ALL,
    length: Annotated[
        str | None,
        typer.Option(help="Tokens of every prompt; default: 1024, or the window.", show_default=False),
    ] = None,
    trials: Annotated[int, typer.Option(help="Prompts that each detector scores heads on, at most.")] = 20,
    prompts: Annotated[int, typer.Option(help="Fresh prompts asked with heads taken out, and on budgets.")] = 10,
    heads: Annotated[str, typer.Option(help="How many heads are taken out, such as 1,2,4.")] = "1,2,4,8,16",
    draws: Annotated[int, typer.Option(help="Random orders of heads beside each detector's.")] = 5,
    budgets: Annotated[str, typer.Option(help="Mean entries per KV head that scores divide.")] = "64",
    needles: Annotated[
        str | None,
        typer.Option(help="Needle set or .jsonl file for all; default: each detector's own.", show_default=False),
    ] = None,
    scores: Annotated[
        list[Path] | None,
        typer.Option(help="Score file of a detector, taken as it is; may be repeated.", show_default=False),
    ] = None,
    haystack: HaystackOption = "all",
    gqa: GqaOption = "mean",
    seed: Annotated[int, typer.Option(help="Choice of needles and where the haystack begins.")] = 0,
    batch: Annotated[
        int | None,
        typer.Option(help="Sets of heads that go through a prompt together; default: up to 16.", show_default=False),
    ] = None,
    chat: ChatTemplateOption = True,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", metavar="DIR", help="Folder; default evals/referee--<model>.", show_default=False
        ),
    ] = None,
    resume: ResumeOption = False,
    overwrite: OverwriteRunOption = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Judge detectors: who agrees, whose heads the answers need, whose budgets keep them, and at what cost."""
    options = RefereeOptions(
        detectors=tuple(e.name for e in estimators(list(ESTIMATORS) if detectors == ALL else detectors)),
        length=None if length is None else one_length(length, "--length"),
        trials=trials,
        prompts=prompts,
        heads=_numbers(heads, "--heads"),
        draws=draws,
        budgets=_numbers(budgets, "--budgets"),
        needles=needles,
        haystack=haystack,
        seed=seed,
        chat=chat,
        gqa=gqa,
        batch=batch,
    )
    given = read_given(scores or (), options.detectors, model)
    folder = RefereeFolder.default(model) if output is None else RefereeFolder(output)
    inputs: dict[str, Path | str | None] = {"--needles": needles, "--haystack": haystack}
    inputs |= {f"the scores of {name}": known.path for name, known in given.items()}
    scored = [name for name in options.detectors if name not in given]
    folder.check(scored, resume=resume, overwrite=overwrite, inputs=inputs)
    loaded = load_model(model, device=device, dtype=dtype)
    plan = RefereePlan.build(loaded, options, given)
    for note in given_notes(given):
        tell(f"note: {note}")
    with (
        Orderly(RESUME_HINT),
        folder.journal(plan.describe(loaded), plan.check(), resume=resume, overwrite=overwrite) as journal,
    ):
        if journal.was_cut:
            tell_cut(journal.path, journal.dropped)
        referee = Referee(loaded, plan, folder, journal, RefereeWatch(tell_part, Pieces().update, tell_cut))
        tell_answered(plan, referee.ask())
        result = referee.run()
    write_files(folder, result)
    print_result(folder, result, as_json)


def tell_answered(plan: RefereePlan, prompts: Sequence[Prompt]) -> None:
    """On stderr how many prompts the model answers, and whether that is too few."""
    needles = len(set(plan.bench.clusters(prompts)))
    tell(f"{len(prompts)} of {len(plan.asked)} fresh prompts answered with all heads")
    if needles < FEWEST_NEEDLES:
        tell(
            f"warning: the model answers {len(prompts)} of {len(plan.asked)} prompts with all heads, of {needles} "
            f"needles: areas and shares rest on those alone, and below {FEWEST_NEEDLES} needles no effect can be said; "
            "--prompts gives more"
        )


def tell_part(name: str) -> None:
    """On stderr that a part is done."""
    kind, _, rest = name.partition("|")
    words = {"run": "scored by", "budgets": "asked on budgets:"}
    tell(f"{words[kind]} {rest}")


class Pieces:
    """A line on stderr at every tenth of the knockout, with the time that is left."""

    def __init__(self) -> None:
        self._began, self._first, self._told = time.monotonic(), 0, 0

    def update(self, done: int, total: int) -> None:
        """Count a piece of work: one prompt under one batch of head sets."""
        if not self._first:
            self._began, self._first, self._told = time.monotonic(), done, done * 10 // total
        if done * 10 // total > self._told:
            self._told = done * 10 // total
            passed = time.monotonic() - self._began
            left = told_seconds(passed * (total - done) / max(done - self._first, 1))
            tell(f"asked without heads: {done} of {total} pieces, about {left} left")


def _numbers(text: str, option: str) -> tuple[int, ...]:
    """Whole numbers from text such as `16,32`."""
    parts = [part.strip() for part in text.split(",")]
    for part in parts:
        if not (part.isdecimal() and part.isascii() and len(part) < 10):
            raise OptionError(f"{option} has {part!r:.60}, need whole numbers such as 16 or 16,32")
    return tuple(int(part) for part in parts)


# -- results ----------------------------------------------------------------------------------------------------------


def write_files(folder: RefereeFolder, result: RefereeResult) -> None:
    """Result, table and picture; what lies there from an earlier part of the run is replaced."""
    text = json.dumps(result.record(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    write_atomically(folder.file(RESULT), text.encode(), overwrite=True)
    write_atomically(folder.file(TABLE), markdown(result).encode(), overwrite=True)
    if result.scored:
        PictureFile(folder.file(PICTURE), "png", overwrite=True).write(lambda: figures().referee_figure(result))


def print_result(folder: RefereeFolder, result: RefereeResult, as_json: bool) -> None:
    """The tables, or with `as_json` the record."""
    if as_json:
        write_json({"path": str(folder.path), **result.record()})
        return
    console = stdout_console()
    console.print(f"{heading(result)}\n", soft_wrap=True, markup=False)
    columns, rows = table(result)
    print_table(columns, rows, right=columns[1:])
    console.print(f"\n{legend(result)}\n", soft_wrap=True, markup=False)
    if result.scored:
        columns, rows = agreement(result)
        print_table(columns, rows, right=columns[1:])
    for verdict in result.verdicts:
        if verdict.reason is not None:
            console.print(f"\n{verdict.name}: {verdict.reason}", soft_wrap=True, markup=False)
    console.print(f"\nwritten to {folder.path}/", soft_wrap=True, markup=False)


def heading(result: RefereeResult) -> str:
    """What was measured, in one line."""
    facts = result.facts
    return (
        f"{result.model}: {len(result.verdicts)} detectors on at most {facts['trials']} prompts of "
        f"{facts['length']:,} tokens; {result.answered} of {result.asked} fresh prompts (needles "
        f"{facts['asked_needles']}) answered with all heads"
    )


def legend(result: RefereeResult) -> str:
    """How to read the tables."""
    recall = "recall: of the planted heads, among as many of the best as there are, and twice as many; "
    shown = any(verdict.recall for verdict in result.verdicts)
    return (
        f"{recall if shown else ''}area: under the share of answers left while heads lose sight of the needle, best "
        "first (lower: the answers need these heads more); random: the same with random heads of the same layers, a "
        f"mean over {result.facts.get('draws')} orders; difference: random minus area, on the same prompts; effect: "
        "causal where the difference is certain, none where no causal effect is, reversed where random heads cost "
        "more, else unclear; left: share of answers on a cache of N entries per KV head that the scores divide; "
        "seconds: of the run, which detectors on the same prompts share; below, Spearman and how many of the best "
        f"{result.top} heads are shared"
    )


def table(result: RefereeResult) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    """A row per detector, and two for budgets without one."""
    budgets = sorted({b for found in result.baselines.values() for b in found})
    recalls = next((tuple(v.recall) for v in result.verdicts if v.recall), ())
    curve = ("area", "95 %", "random", "difference", "95 %", "effect")
    columns = (
        "detector", "passed", *(f"recall at {k}" for k in recalls), *curve, *(f"left at {b}" for b in budgets),
        "seconds",
    )  # fmt: skip
    rows = [_row(verdict, recalls, budgets) for verdict in result.verdicts]
    for name, found in result.baselines.items():
        left = (_percent(found[budget]) for budget in budgets)
        rows.append((f"({name} budgets)", None, *(None for _ in recalls), *(None for _ in curve), *left, None))
    return columns, rows


def _row(verdict: Verdict, recalls: Sequence[int], budgets: Sequence[int]) -> tuple[str | None, ...]:
    curve = verdict.curve
    seconds = None if verdict.seconds is None else told_seconds(verdict.seconds)
    return (
        verdict.name,
        f"{verdict.passed}/{verdict.trials}",
        *(None if verdict.recall is None else _percent(verdict.recall[k]) for k in recalls),
        None if curve is None else f"{curve.area.mean:.2f}",
        None if curve is None else _interval(curve.area),
        None if curve is None else f"{curve.random_area.mean:.2f}",
        None if curve is None else _signed(curve.difference.mean or 0.0),
        None if curve is None else _interval(curve.difference, _signed),
        None if curve is None else curve.effect,
        *(None if verdict.budgets is None else _percent(verdict.budgets[b]) for b in budgets),
        seconds if verdict.file is None else "file",
    )


def _signed(value: float) -> str:
    return f"{round(value, 2) or 0.0:+.2f}"


def _interval(found: Estimate, figure: Callable[[float], str] = "{:.2f}".format) -> str | None:
    if found.low is None or found.high is None:
        return None
    return f"{figure(found.low)} to {figure(found.high)}"


def agreement(result: RefereeResult) -> tuple[tuple[str, ...], list[tuple[str | None, ...]]]:
    """Spearman and the shared best heads of each pair."""
    ranks, shared = result.agreement()
    names = [verdict.name for verdict in result.scored]
    rows: list[tuple[str | None, ...]] = []
    for row, name in enumerate(names):
        cells = [
            None if row == column else f"{ranks[row, column]:.2f} {shared[row, column]:.0f}"
            for column in range(len(names))
        ]
        rows.append((name, *cells))
    return (f"Spearman, of {result.top}", *names), rows


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def markdown(result: RefereeResult) -> str:
    """The tables for a README."""
    parts: list[Any] = [heading(result), _markdown_table(*table(result)), legend(result)]
    if result.scored:
        parts.append(_markdown_table(*agreement(result)))
    return "\n\n".join(parts) + "\n"


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str | None]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join("" if cell is None else cell for cell in row) + " |" for row in rows]
    return "\n".join(lines)

"""`headprobe referee`: all detectors on one model, and which of them names the heads that the answers need."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from time import monotonic
from typing import Annotated

import typer

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
from headprobe.commands.output import RESUME_HINT, Tenths, tell, tell_cut, time_left
from headprobe.commands.reading import one_length
from headprobe.commands.referee_output import print_result, write_files
from headprobe.evaluation.knockout.verdict import FEWEST_NEEDLES
from headprobe.evaluation.referee.plan import RefereeOptions, RefereePlan, given_notes, read_given
from headprobe.evaluation.referee.result import RefereeFolder
from headprobe.evaluation.referee.run import Referee, RefereeWatch
from headprobe.models.loading import load_model
from headprobe.probes.plan import whole_numbers
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import ESTIMATORS, estimators

ALL = "all"
NOT_WHOLE = "has {}, need whole numbers such as 16 or 16,32"


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
        heads=whole_numbers(heads, f"--heads {NOT_WHOLE}"),
        draws=draws,
        budgets=whole_numbers(budgets, f"--budgets {NOT_WHOLE}"),
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
    """A line on stderr at every tenth of the knockout, at the latest after two minutes, with the time that is left."""

    def __init__(self) -> None:
        self._began, self._first = 0.0, 0
        self._lines: Tenths | None = None

    def update(self, done: int, total: int) -> None:
        """Count a piece of work: one prompt under one batch of head sets."""
        if self._lines is None:
            self._began, self._first = monotonic(), done
            self._lines = Tenths(done, total, self._began)
        now = monotonic()
        if self._lines.is_due(done, total, now):
            left = time_left(now - self._began, done - self._first, total - done)
            tell(f"asked without heads: {done} of {total} pieces, about {left} left")

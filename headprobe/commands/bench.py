"""`headprobe bench`: what a compressed cache costs in time and memory, and what it spares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from headprobe.commands.bench_output import DERIVED, RUNS, BenchProgress, print_bench, write_bench
from headprobe.commands.interrupts import Orderly
from headprobe.commands.observed import observed
from headprobe.commands.options import (
    PAIRS,
    AttentionOption,
    BetaOption,
    DeviceOption,
    DtypeOption,
    GqaOption,
    LayerChunkOption,
    PoolOption,
    ResumeOption,
    SinksOption,
    WindowOption,
    score_inputs,
)
from headprobe.commands.output import print_table, tell, tell_cut, write_json
from headprobe.compression.policies import POLICIES, CompressionPlan, Policy
from headprobe.compression.session import check_serving
from headprobe.errors import OptionError, refuse_empty
from headprobe.evaluation.costs.bench import Bench, BenchOptions
from headprobe.evaluation.costs.results import BenchRowCheck, Speed, bench_record, budget_seconds, run_bench
from headprobe.evaluation.costs.shapes import SHAPES, ModelShape, find_shape
from headprobe.evaluation.costs.subject import Subject, contenders_of_shape, copy_bandwidth
from headprobe.evaluation.known_scores import Recommended
from headprobe.evaluation.variants import PolicyOptions, policy_names
from headprobe.models.catalog import resolve, short_name
from headprobe.models.devices import check_dtype, pick_device
from headprobe.models.loading import load_model
from headprobe.probes.plan import parse_lengths, whole_numbers
from headprobe.profiling.journal import Journal, check_run
from headprobe.scores.any_scores import read_any

NOT_WHOLE = "{} is not a whole number (write 16 or 16,32)"
HINT = "finished runs are kept, the same command with --resume goes on"


@observed
def bench_command(
    model: Annotated[
        str | None,
        typer.Option(help="Alias, local folder or hub id; default: demo, unless --shape is given.", show_default=False),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(help=f"Random weights of a known shape: {', '.join(SHAPES)}.", show_default=False),
    ] = None,
    policies: Annotated[
        str, typer.Option(help=f"{', '.join(POLICIES)}, or {PAIRS}; with commas; all for every named one.")
    ] = "full,snapkv,ada-snapkv,headkv-r2",
    budgets: Annotated[str, typer.Option(help="Mean entries per KV head, window included.")] = "64",
    lengths: Annotated[str, typer.Option(help="Tokens of the prompts, such as 1k,2k.")] = "512,1k",
    batch: Annotated[str, typer.Option(help="Sequences that are decoded together, such as 1,8.")] = "1",
    new_tokens: Annotated[str, typer.Option(help="Lengths of the answer at which the time is noted.")] = "1,16,64",
    decode_at: Annotated[
        str | None,
        typer.Option(
            help="Only behind prompts of these lengths go answers beyond the first of --new-tokens; default: all.",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(help="Measured runs of everything, of which the median counts.")] = 5,
    scores: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Score file; several by naming it again.", show_default=False),
    ] = None,
    window: WindowOption = None,
    pool: PoolOption = None,
    beta: BetaOption = None,
    sinks: SinksOption = None,
    gqa: GqaOption = "mean",
    attention: AttentionOption = "auto",
    prefill_chunk: LayerChunkOption = None,
    seed: Annotated[int, typer.Option(help="Random prompts, and a shape's random head scores.")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder; default evals/bench--<model>.", show_default=False),
    ] = None,
    resume: ResumeOption = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is there.")] = False,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print how much there is to do, and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")] = False,
) -> None:
    """Measure what compressed caches cost: prefill, time per token, peak memory, against the full cache."""
    refuse_empty({"--model": model, "--shape": shape})
    if model is not None and shape is not None:
        raise OptionError(f"--model {model} and --shape {shape}: one of the two is measured")
    if seed < 0:
        raise OptionError(f"the seed is {seed}, need 0 or more")
    options = BenchOptions(
        budgets=whole_numbers(budgets, f"--budgets {NOT_WHOLE}"),
        lengths=parse_lengths(lengths),
        batches=whole_numbers(batch, f"--batch {NOT_WHOLE}"),
        new_tokens=whole_numbers(new_tokens, f"--new-tokens {NOT_WHOLE}"),
        decode_at=None if decode_at is None else parse_lengths(decode_at),
        repeats=repeats,
        attention=attention,
        prefill_chunk=prefill_chunk,
        seed=seed,
    )
    check_serving(attention, gqa, prefill_chunk)
    asked = Asked(
        None if shape is None else find_shape(shape), model or "demo", tuple(scores or ()), gqa, device, dtype,
        PolicyOptions(window, pool, beta, sinks), policy_names(policies),
    )  # fmt: skip
    chosen = asked.checked_policies(options)
    folder = output or Path("evals") / f"bench--{asked.name.replace('/', '--')}"
    if dry_run:
        _print_plan(asked, options, chosen, as_json)
        return
    derived = [folder / name for name in DERIVED]
    check_run(folder / RUNS, derived, resume=resume, overwrite=overwrite, inputs=score_inputs(asked.scores))
    bench = Bench(asked.subject(chosen, seed), options)
    for remark in bench.remarks():
        tell(f"note: {remark}")
    _run(bench, folder, resume=resume, overwrite=overwrite, as_json=as_json)


@dataclass(frozen=True)
class Asked:
    """What is to be measured, before any of it is loaded."""

    shape: ModelShape | None
    model: str
    scores: tuple[Path, ...]
    gqa: str
    device: str
    dtype: str
    changes: PolicyOptions
    policies: tuple[str, ...]

    @property
    def name(self) -> str:
        """The shape's or the model's."""
        return short_name(self.model) if self.shape is None else self.shape.name

    def checked_policies(self, options: BenchOptions) -> list[Policy]:
        """The policies, changed as asked or as the model recommends; all that can be refused before a model loads is.

        Raises `OptionError` for a budget below a policy's window and sinks, a device that is not there, ...
        """
        pick_device(self.device)
        check_dtype(self.dtype)
        for path in self.scores:
            read_any(path)
        found = self.changes.apply(self.policies)
        if self.shape is None:
            known = Recommended.of(resolve(self.model).source).without(self.changes.window, self.changes.pool)
            found = [known.apply(policy) for policy in found]
        for policy in found:
            for budget in options.budgets if not policy.keeps_all else ():
                CompressionPlan(policy, 1, 1, budget, head_scores=np.ones((1, 1)))
        return found

    def subject(self, policies: list[Policy], seed: int) -> Subject:
        """The model, loaded or made."""
        if self.shape is None:
            loaded = load_model(self.model, device=self.device, dtype=self.dtype)
            return Subject.of_model(loaded, policies, self.scores, self.gqa)
        contenders = contenders_of_shape(self.shape, policies, self.scores, self.gqa, seed)
        return Subject.of_shape(self.shape, pick_device(self.device), self.dtype, contenders)


def _print_plan(asked: Asked, options: BenchOptions, policies: list[Policy], as_json: bool) -> None:
    """How much there is to do."""
    cells = options.num_cells(sum(not policy.keeps_all for policy in policies))
    plan: dict[str, Any] = {
        "model": asked.name, "random_weights": asked.shape is not None,
        "policies": [policy.name for policy in policies], "budgets": list(options.budgets),
        "lengths": list(options.lengths), "batches": list(options.batches), "new_tokens": list(options.new_tokens),
        "repeats": options.repeats, "cells": cells, "runs": cells * options.repeats, "warm_ups": cells,
    }  # fmt: skip
    if as_json:
        write_json(plan)
        return
    notes = {
        "cells": "policies and budgets, the full cache and transformers' own, at every length and batch",
        "runs": "beside the warm-ups; the full cache once more for each other kernel that a policy needs",
    }
    shown = {name: ", ".join(map(str, value)) if isinstance(value, list) else value for name, value in plan.items()}
    print_table(("", "plan", ""), [(name, value, notes.get(name, "")) for name, value in shown.items()])


def _run(bench: Bench, folder: Path, *, resume: bool, overwrite: bool, as_json: bool) -> None:
    """Measure what is left, write table and picture, print the table."""
    described, check = bench.describe(), BenchRowCheck(bench)
    with (
        Orderly(HINT),
        Journal.open(folder / RUNS, described, resume=resume, overwrite=overwrite, check=check) as journal,
    ):
        if journal.was_cut:
            tell_cut(journal.path, journal.dropped)
        with BenchProgress(bench, journal) as progress:
            rows = run_bench(bench, journal, progress.update)
        subject = bench.subject
        speed = Speed(subject.weights_read, copy_bandwidth(subject.model.device))
        record = bench_record(bench, rows, budget_seconds(bench), speed)
        write_bench(folder, record)
    print_bench(folder, record, as_json)

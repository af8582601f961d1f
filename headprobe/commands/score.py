"""`headprobe score`: measure which heads of a model look at the answer."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headprobe.errors import OptionError

if TYPE_CHECKING:
    from headprobe.models.loading import LoadedModel
    from headprobe.profiling.run import Prepared
    from headprobe.scores.head_scores import HeadScores

TOP_HEADS = 10


def score_command(
    model: Annotated[str, typer.Option(help="Alias (see `headprobe models`), local folder or hub id.")] = "demo",
    method: Annotated[str, typer.Option(help="r2, retrieval, enhanced, contrast, value; several with commas.")] = "r2",
    needles: Annotated[
        str | None, typer.Option(help="Needle set or .jsonl file; default: what the method uses.")
    ] = None,
    haystack: Annotated[str, typer.Option(help="Background text: a name, file or folder (txt, md, jsonl).")] = "all",
    lengths: Annotated[str | None, typer.Option(help="Context lengths in tokens, such as 512,1k,2k.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest length; default: the model's window.")] = None,
    num_lengths: Annotated[int, typer.Option(help="How many lengths, spread evenly up to the longest.")] = 5,
    depths: Annotated[int, typer.Option(help="How many depths, spread evenly over 0 to 100 %.")] = 10,
    needles_per_cell: Annotated[int, typer.Option(help="Needles tried at each length and depth.")] = 2,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Score file; default scores/<model>--<method>.json.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16, float16.")] = "auto",
    seed: Annotated[int, typer.Option(help="Choice of needles and where the haystack begins.")] = 0,
    limit: Annotated[int | None, typer.Option(help="At most so many trials, spread over the grid.")] = None,
    chat: Annotated[bool, typer.Option("--chat-template/--no-chat-template", help="Use the model's own.")] = True,
    trials: Annotated[bool, typer.Option("--trials/--no-trials", help="Keep every trial's scores in the file.")] = True,
    prefill_chunk: Annotated[int, typer.Option(help="Tokens that go through the model at a time.")] = 8192,
    dump_prompts: Annotated[Path | None, typer.Option(help="Write every trial's prompt to this JSONL file.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per method.")] = False,
) -> None:
    """Find the heads that retrieve: probe MODEL with needles in haystacks and write a score file."""
    from headprobe.models.loading import load_model
    from headprobe.probes.plan import parse_lengths
    from headprobe.profiling import run as scoring
    from headprobe.profiling.estimators import estimators

    methods = tuple(e.name for e in estimators(method))
    options = scoring.ScoreOptions(
        methods=methods, needles=needles, haystack=haystack, lengths=parse_lengths(lengths) if lengths else None,
        max_length=max_length, num_lengths=num_lengths, depths=depths, needles_per_cell=needles_per_cell, seed=seed,
        limit=limit, chat=chat, with_trial_scores=trials, prefill_chunk=_at_least(prefill_chunk, 1, "--prefill-chunk"),
    )  # fmt: skip
    paths = scoring.output_paths(model, methods, output)
    if not dry_run:
        scoring.check_outputs(paths, resume=resume, overwrite=overwrite)
    loaded = load_model(model, device=device, dtype=dtype)
    prepared = scoring.prepare(loaded, options)
    _tell_duplicates(prepared)
    if dump_prompts is not None:
        _dump(prepared, dump_prompts, overwrite)
    if dry_run:
        _print_plan(loaded, prepared, as_json)
        return
    with _Progress(prepared, resume) as progress:
        result = scoring.run(
            loaded, prepared, paths, resume=resume, overwrite=overwrite, on_trial=progress.update, command=_command()
        )
    for trial, reason in result.skipped.items():
        print(f"headprobe: skipped {trial}: {reason}", file=sys.stderr)
    for name, scores in result.scores.items():
        if as_json:
            _print_json(scores, paths[name])
        else:
            _print_table(scores, paths[name])


def _at_least(value: int, least: int, option: str) -> int:
    if value < least:
        raise OptionError(f"{option} is {value}, need at least {least}")
    return value


def _command() -> str:
    """The command line without folders."""
    return " ".join(["headprobe", *(shlex.quote(Path(a).name if "/" in a else a) for a in sys.argv[1:])])


# -- before the run -------------------------------------------------------------------------------------------------


def _tell_duplicates(prepared: Prepared) -> None:
    from headprobe.probes.prompt import duplicate_prompts

    for group in duplicate_prompts(prepared.prompts):
        print(f"headprobe: warning: the same prompt under several depths: {', '.join(group)}", file=sys.stderr)


def _dump(prepared: Prepared, path: Path, overwrite: bool) -> None:
    import orjson

    from headprobe.probes.prompt import prompt_record
    from headprobe.scores.atomic_file import write_atomically

    lines = b"".join(orjson.dumps(prompt_record(prompt)) + b"\n" for prompt in prepared.prompts)
    write_atomically(path, lines, overwrite=overwrite)
    print(f"headprobe: {len(prepared.prompts)} prompts in {path}", file=sys.stderr)


def _print_plan(loaded: LoadedModel, prepared: Prepared, as_json: bool) -> None:
    import orjson
    from rich.console import Console
    from rich.table import Table

    from headprobe.profiling.estimate import estimate

    cost = estimate(loaded, prepared.prompts)
    rows: dict[str, Any] = {
        "model": loaded.name,
        "methods": list(prepared.options.methods),
        "num_trials": len(prepared.prompts),
        "lengths": list(prepared.plan.lengths),
        "depths": list(prepared.plan.depths),
        "needles": prepared.plan.needles.name,
        "tokens": cost.tokens,
        "tokens_to_compute": cost.tokens_to_compute,
        "kv_bytes": cost.kv_bytes,
        "seconds": round(cost.seconds, 1),
    }
    if as_json:
        print(orjson.dumps(rows).decode())
        return
    table = Table(title="plan", show_header=False)
    notes = {
        "tokens": "in all prompts and answers", "tokens_to_compute": "after sharing prefixes",
        "kv_bytes": "cache of the longest prompt", "seconds": "rough, from a short trial of this machine",
    }  # fmt: skip
    for name, value in rows.items():
        shown = (
            f"{value:,}"
            if isinstance(value, int | float)
            else ", ".join(f"{v}" if isinstance(v, str) else f"{v:g}" for v in value)
            if isinstance(value, list)
            else str(value)
        )
        table.add_row(name, shown, notes.get(name, ""))
    Console().print(table)


# -- during the run -------------------------------------------------------------------------------------------------


class _Progress:
    """Trials done, pass rate, best heads so far and time left, on stderr."""

    def __init__(self, prepared: Prepared, resume: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.gate = prepared.estimators[0].gate
        self.method = prepared.estimators[0].name
        self.done = self.passed = 0
        self.sums: Any = None
        self.bar = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(),
            TextColumn("passed {task.fields[rate]}  top {task.fields[top]}"), TimeRemainingColumn(),
            console=Console(stderr=True), disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self.task = self.bar.add_task("scoring", total=len(prepared.prompts), rate="-", top="-")

    def update(self, record: dict[str, Any]) -> None:
        import numpy as np

        from headprobe.profiling.scoring import passed

        self.done += 1
        if passed(record, self.gate):
            self.passed += 1
            scores = np.array(record["scores"][self.method])
            self.sums = scores if self.sums is None else self.sums + scores
        top = "-"
        if self.sums is not None:
            best = np.argsort(-self.sums, axis=None, kind="stable")[:3]
            top = " ".join(f"{i // self.sums.shape[1]}-{i % self.sums.shape[1]}" for i in best)
        self.bar.update(self.task, advance=1, rate=f"{self.passed / self.done:.0%}", top=top)

    def __enter__(self) -> _Progress:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()


# -- after the run --------------------------------------------------------------------------------------------------


def _print_json(scores: HeadScores, path: Path) -> None:
    import orjson

    record = {
        "path": str(path),
        "method": scores.method.name,
        "num_trials": scores.num_trials,
        "num_passed": scores.num_passed,
        "top_heads": [{"layer": la, "head": h, "score": s} for la, h, s in scores.top(TOP_HEADS)],
    }
    print(orjson.dumps(record).decode())


def _print_table(scores: HeadScores, path: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from headprobe.scores.bootstrap import head_intervals

    console = Console()
    rates = scores.pass_rates()
    lengths, depths = sorted({n for n, _ in rates}), sorted({d for _, d in rates})
    grid = Table(title=f"passed, by length and depth (%): {scores.num_passed} of {scores.num_trials} trials")
    grid.add_column("tokens", justify="right")
    for depth in depths:
        grid.add_column(f"{depth:.0f}", justify="right")
    for length in lengths:
        cells = (rates.get((length, depth)) for depth in depths)
        grid.add_row(str(length), *(f"{c[0]}/{c[1]}" if c else "" for c in cells))
    console.print(grid)
    best = scores.top(TOP_HEADS)
    intervals = head_intervals(scores, [(layer, head) for layer, head, _ in best])
    heads = Table(title=f"top heads by {scores.method.name}")
    for column in ("rank", "layer", "head", "score", "95 % interval", "share"):
        heads.add_column(column, justify="right")
    for rank, ((layer, head, value), (low, high)) in enumerate(zip(best, intervals, strict=True), 1):
        share = scores.normalized[layer, head]
        heads.add_row(str(rank), str(layer), str(head), f"{value:.3f}", f"{low:.3f} to {high:.3f}", f"{share:.1%}")
    console.print(heads)
    console.print(f"written to {path}", soft_wrap=True, highlight=False)

"""What `headprobe referee` prints and writes: its tables, and what they mean in words."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from headprobe.commands.output import print_table, stdout_console, told_seconds, write_json
from headprobe.commands.picture_output import PictureFile, figures
from headprobe.evaluation.referee.result import PICTURE, RESULT, TABLE, RefereeFolder, RefereeResult, Verdict
from headprobe.scores.files import write_atomically
from headprobe.scores.uncertainty import Estimate


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

"""What `headprobe tune` prints and writes: candidates by size, the choice and its proof, the policy file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headprobe.commands.evaluate.needles_output import size
from headprobe.commands.output import print_table, stdout_console
from headprobe.errors import OutputExistsError
from headprobe.evaluation.task_folder import SUMMARY
from headprobe.evaluation.tuning.kept_share import Candidate, percent
from headprobe.evaluation.tuning.policy_file import PolicyFile
from headprobe.evaluation.tuning.search import POLICY, Tuned, TuneFolder, TuneGrid
from headprobe.models.loading import LoadedModel
from headprobe.scores.files import file_bytes, same_place, write_atomically
from headprobe.stages import stage_record

SCHEMA = "headprobe-tune/1"
COLUMNS = ("policy", "budget", "score", "of full", "at least", "KV held", "entries", "")
LEGEND = (
    "measured on the prompts for the choice; of full: share of the full cache's score; at least: its bound with 95 % "
    "confidence (bootstrap over clusters); KV held: mean bytes of a cache, with room for the answer; entries: share of "
    "those of the full cache"
)


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
            side: {"prompts": len(own), "clusters": len({prompt.cluster for prompt in own})}
            for side, own in sides.items()
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
        "stages": stage_record(),
    }


def write_tuned(
    folder: TuneFolder, grid: TuneGrid, made: PolicyFile | None, record: dict[str, Any], overwrite: bool
) -> None:
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
        _copy(path, folder.file(made.scores.file), overwrite=overwrite)
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


def print_tuned(folder: TuneFolder, grid: TuneGrid, tuned: Tuned, record: dict[str, Any]) -> None:
    """The candidates by size, what was chosen, and what it keeps on the prompts held out."""
    console, split = stdout_console(), record["split"]
    sides = [
        f"{own['prompts']} prompts in {own['clusters']} clusters" for own in (split["calibration"], split["held_out"])
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
    nearby = f"nearest is {best.label} at {best.budget} with at least {percent(low)}"
    return f"{found}; {nearby}. The held-out prompts were not run"

"""A real model in float32: 100 trials scored, needles under all policies, against what a CPU gave for the same prompts.

The CPU's side is `results/real-<model>-cpu.json`, made by this very part with `--device cpu`, which takes 40 minutes of
one core with SmolLM2-135M and goes on where it was interrupted; without it nothing is compared, and the record says so.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS, environment
from benchmarks.gpu.bench import Bench
from headprobe.compression.policies import POLICIES
from headprobe.evaluation.needle_folder import GridFolder
from headprobe.evaluation.needle_grid import GridOptions, NeedleGrid, run_grid
from headprobe.models.loading import LoadedModel, load_model
from headprobe.profiling.job import ScoreOptions
from headprobe.profiling.preflight import output_paths
from headprobe.profiling.run import score
from headprobe.scores.files import write_atomically
from headprobe.scores.score_file import read_score_file

METHODS = ("r2", "retrieval")
BUDGETS = (128,)
NOTHING_THERE = "no CPU result of these weights is there"
GRID_S, LOOK_S = 120.0, 20.0  # on a GPU, for the needles


def run(bench: Bench, note: Any) -> None:
    assert bench.real_model is not None
    loaded = load_model(bench.real_model, device=bench.device.type, dtype="float32")
    note("model", {"name": loaded.name, "weights_sha256": loaded.weights_sha256, "window": loaded.window})
    if bench.on_gpu or bench.shape.name == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            measured(bench, loaded, Path(folder), note)
        return
    place = RESULTS / f"real-{Path(loaded.name).stem}-cpu.json"
    work = bench.record.json_file.with_name(f"{place.stem}-work")
    found = measured(bench, loaded, work, note)
    write_atomically(place, (json.dumps(found, indent=1) + "\n").encode(), overwrite=True)
    shutil.rmtree(work)


def measured(bench: Bench, loaded: LoadedModel, work: Path, note: Any) -> dict[str, Any]:
    """Scores and needles, noted as they come, on a GPU beside the CPU's; what `work` holds of an interrupted run is not
    done again."""
    there = of_the_cpu(RESULTS, loaded.weights_sha256) if bench.on_gpu else None
    found: dict[str, Any] = {"environment": environment(), "weights_sha256": loaded.weights_sha256}
    found["scores"] = scored(bench, loaded, work)
    note("score", {
        name: {what: value for what, value in row.items() if what != "mean"} for name, row in found["scores"].items()
    })  # fmt: skip
    if bench.on_gpu:
        note("scores_against_the_cpu", compared_scores(found["scores"], there))
    for so_far in needles(bench, loaded, work):
        found["needles"] = so_far
        note("needles", so_far["exact_matches"])
        if bench.on_gpu:
            note("needles_against_the_cpu", compared_answers(so_far["responses"], there))
    return found


def scored(bench: Bench, loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """100 trials up to 8k (as far as the window goes), and the ten best heads; two short ones in a trial run."""
    full = bench.shape.name != "tiny"
    lengths = tuple(n for n in ((1024, 2048, 4096, 8192) if full else (160,)) if n <= loaded.window)
    options = ScoreOptions(methods=METHODS, needles="retrieval", lengths=lengths, depths=5,
                           needles_per_cell=100 // (5 * len(lengths)), limit=None if full else 2)  # fmt: skip
    paths = output_paths(loaded.name, METHODS, folder / "scores")
    begin = time.perf_counter()
    if all(path.exists() for path in paths.values()):
        made = {name: read_score_file(path) for name, path in paths.items()}
    else:
        made = score(loaded, options, output=folder / "scores", resume=True).scores
    seconds = round(time.perf_counter() - begin, 2)
    return {
        name: {"seconds": seconds, "trials": table.num_trials, "passed": table.num_passed,
               "mean": np.round(table.mean, 6).tolist(), "top": [list(head)[:2] for head in table.ranking()[:10]]}
        for name, table in made.items()
    }  # fmt: skip


def needles(bench: Bench, loaded: LoadedModel, folder: Path) -> Iterator[dict[str, Any]]:
    """Retrieval needles at 2k and 8k under all policies: on a GPU what is there every `LOOK_S`, then all of it."""
    full = bench.shape.name != "tiny"
    lengths = tuple(n for n in ((2048, 8192) if full else (160,)) if n <= loaded.window)
    files = tuple(sorted((folder / "scores").glob("*.json")))
    policies = tuple(POLICIES) if full else ("full", "snapkv")
    options = GridOptions(policies=policies, budgets=BUDGETS, lengths=lengths, depths=5 if full else 1,
                          needles="retrieval", baselines=(), scores=files)  # fmt: skip
    grid = NeedleGrid.build(loaded, options)
    planned, ends = len(list(grid.trials())), time.monotonic() + GRID_S
    while True:
        with GridFolder(folder / "grid").journal(grid.describe(loaded), resume=True, overwrite=False) as journal:
            rows = run_grid(loaded, grid, journal, seconds=LOOK_S if bench.on_gpu else None, together=True)
        yield by_policy(rows)
        if len(rows) == planned or time.monotonic() > ends:
            return


def by_policy(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Exact matches and prompts of each policy, and the answers by trial."""
    hits: dict[str, list[int]] = {}
    for row in rows:
        found = hits.setdefault(row["policy"], [0, 0])
        found[0] += bool(row["exact_match"])
        found[1] += 1
    return {"exact_matches": hits, "responses": {row["trial"]: row["response"] for row in rows}}


def of_the_cpu(results: Path, weights_sha256: str) -> dict[str, Any] | None:
    """The CPU's side of these weights, whatever their file was called there."""
    found = (json.loads(path.read_text()) for path in sorted(results.glob("real-*-cpu.json")))
    return next((each for each in found if each["weights_sha256"] == weights_sha256), None)


def compared_scores(here: dict[str, Any], there: dict[str, Any] | None) -> dict[str, Any] | str:
    """By method: the largest difference of two heads' scores, and how many of the best ten heads agree."""
    if there is None:
        return NOTHING_THERE
    return {
        name: {
            "largest_difference": float(np.abs(np.array(row["mean"]) - np.array(other["mean"])).max()),
            "same_of_best_10": len({tuple(head) for head in row["top"]} & {tuple(head) for head in other["top"]}),
            "passed": [row["passed"], other["passed"]],
        }
        for name, row in here.items()
        if (other := there["scores"].get(name)) is not None
    }


def compared_answers(here: dict[str, str], there: dict[str, Any] | None) -> dict[str, Any] | str:
    """How many answers are the same, of those that both sides have."""
    if there is None:
        return NOTHING_THERE
    theirs = there["needles"]["responses"]
    both = here.keys() & theirs.keys()
    return {"compared": len(both), "same": sum(here[trial] == theirs[trial] for trial in both)}

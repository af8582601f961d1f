"""A real model in float32: 100 trials scored, needles under all policies, against what a CPU gave for the same prompts.

The CPU's side is `results/real-<model>-cpu.json`, made by this very part with `--device cpu`, which takes 40 minutes of
one core with SmolLM2-135M and goes on where it was interrupted; without it nothing is compared, and the record says so.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
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
GRID_S = 60.0


def run(bench: Bench, note: Any) -> None:
    if bench.real_model is None:
        note("model", "none given: name one with --real-model")
        return
    loaded = load_model(bench.real_model, device=bench.device.type, dtype="float32")
    note("model", {"name": loaded.name, "weights_sha256": loaded.weights_sha256, "window": loaded.window})
    if bench.on_gpu or bench.shape.name == "tiny":
        with tempfile.TemporaryDirectory() as folder:
            found = measured(bench, loaded, Path(folder), note)
        if bench.on_gpu:
            note("against_the_cpu", compared(found, of_the_cpu(RESULTS, loaded.weights_sha256)))
        return
    place = RESULTS / f"real-{Path(loaded.name).stem}-cpu.json"
    work = bench.record.json_file.with_name(f"{place.stem}-work")
    found = measured(bench, loaded, work, note)
    write_atomically(place, (json.dumps(found, indent=1) + "\n").encode(), overwrite=True)
    shutil.rmtree(work)


def measured(bench: Bench, loaded: LoadedModel, work: Path, note: Any) -> dict[str, Any]:
    """Scores and needles; what `work` holds of an interrupted run is not done again."""
    found: dict[str, Any] = {"environment": environment(), "weights_sha256": loaded.weights_sha256}
    found["scores"] = scored(bench, loaded, work)
    note("score", {name: row["seconds"] for name, row in found["scores"].items()})
    found["needles"] = needles(bench, loaded, work)
    note("needles", found["needles"]["exact_matches"])
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


def needles(bench: Bench, loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    """Retrieval needles at 2k and 8k under all policies."""
    full = bench.shape.name != "tiny"
    lengths = tuple(n for n in ((2048, 8192) if full else (160,)) if n <= loaded.window)
    files = tuple(sorted((folder / "scores").glob("*.json")))
    policies = tuple(POLICIES) if full else ("full", "snapkv")
    options = GridOptions(policies=policies, budgets=BUDGETS, lengths=lengths, depths=5 if full else 1,
                          needles="retrieval", baselines=(), scores=files)  # fmt: skip
    grid = NeedleGrid.build(loaded, options)
    with GridFolder(folder / "grid").journal(grid.describe(loaded), resume=True, overwrite=False) as journal:
        rows = run_grid(loaded, grid, journal, seconds=GRID_S if bench.on_gpu else None, together=True)
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


def compared(here: dict[str, Any], there: dict[str, Any] | None) -> dict[str, Any] | str:
    """How far the two sides agree."""
    if there is None:
        return "no CPU result of these weights is there"
    scores = {
        name: float(np.abs(np.array(row["mean"]) - np.array(there["scores"][name]["mean"])).max())
        for name, row in here["scores"].items()
        if name in there["scores"]
    }
    mine, theirs = here["needles"]["responses"], there["needles"]["responses"]
    both = mine.keys() & theirs.keys()
    return {"largest_score_difference": scores, "answers_compared": len(both),
            "same_answers": sum(mine[trial] == theirs[trial] for trial in both)}  # fmt: skip

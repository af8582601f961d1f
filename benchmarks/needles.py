"""`python -m benchmarks.needles`: all policies at budgets 16, 32, 64 and 128 on 60 needle prompts of 1k and 2k tokens.

The bundled model; random and shuffled scores beside the real ones. Each prompt is read once, and its policies and
budgets are decoded in batches, so that there are no times per token. Head scores come from `--scores-from`, or are made
in a folder named for the weights: `r2` on reasoning needles, `retrieval` and `enhanced` on retrieval needles, all with
another seed than the evaluation's. A run that was stopped continues when it is started again. Rows, table and pictures
lie in `benchmarks/results/needles-<device>/`, the summary in `benchmarks/results/needles-<device>.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.environment import RESULTS, environment, write_result
from headprobe.commands.evaluate.needles_output import GridProgress, finished, heading, print_plan, print_summary
from headprobe.compression.policies import POLICIES
from headprobe.evaluation.needle_folder import GridFolder, frame_of
from headprobe.evaluation.needle_grid import GridOptions, NeedleGrid, run_grid
from headprobe.evaluation.shares import unfinished
from headprobe.models.loading import LoadedModel, load_model
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.preflight import output_paths
from headprobe.profiling.run import run

BUDGETS, LENGTHS = (16, 32, 64, 128), (1024, 2048)
SCORE_SEED = 1
METHODS = (("r2",), ("retrieval", "enhanced"))


def score_files(loaded: LoadedModel, folder: Path) -> tuple[Path, ...]:
    """One file a method; those that are missing are made."""
    found: list[Path] = []
    for methods in METHODS:
        paths = output_paths(loaded.name, methods, f"{folder}/")
        if not all(path.exists() for path in paths.values()):
            print("scoring heads by", ", ".join(methods), flush=True)
            prepared = prepare(loaded, ScoreOptions(methods=methods, seed=SCORE_SEED))
            run(loaded, prepared, paths, resume=True, overwrite=True)
        found += paths.values()
    return tuple(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--needles-per-cell", type=int, default=3, help="20 prompts each")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--query-agnostic", action="store_true")
    parser.add_argument("--minutes", type=float, default=None, help="start no new prompt after this many minutes")
    parser.add_argument("--scores-from", type=Path, default=None, help="folder of score files")
    parser.add_argument("--overwrite", action="store_true", help="leave a run of other weights or options behind")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    loaded = load_model("demo")
    name = "needles-query-agnostic" if given.query_agnostic else "needles"
    folder = GridFolder(RESULTS / f"{name}-{loaded.device.type}")
    own = RESULTS / f"needles-{loaded.device.type}" / f"scores-{loaded.weights_sha256[:8]}"
    files = score_files(loaded, given.scores_from or own)
    grid = NeedleGrid.build(
        loaded,
        GridOptions(
            policies=tuple(POLICIES), budgets=tuple(given.budgets), lengths=LENGTHS,
            needles_per_cell=given.needles_per_cell, scores=files, query_agnostic=given.query_agnostic,
        ),
    )  # fmt: skip
    print_plan(loaded, grid, as_json=False)
    if given.dry_run:
        return
    seconds = None if given.minutes is None else 60 * given.minutes
    with (
        folder.journal(grid.describe(loaded), resume=not given.overwrite, overwrite=given.overwrite) as journal,
        GridProgress(grid, unfinished(grid.trials(), journal)) as progress,
    ):
        rows = run_grid(loaded, grid, journal, seconds=seconds, together=True, on_trial=progress.update)
    summary, record = finished(folder, frame_of(loaded, grid), rows)
    print_summary(folder, summary, record, as_json=False)
    result: dict[str, Any] = {"environment": environment(), "what": heading(record), **record}
    print("written to", write_result(name, result, given.output))


if __name__ == "__main__":
    main()

"""The bundled model in float32: scores, compressed answers and a needle grid, against the CPU's.

Scores are held against the file that is shipped with the model, the grid against `results/needles-cpu/trials.jsonl`,
both made on a CPU; answers against those that this machine's CPU gives in the same run.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import RESULTS
from benchmarks.gpu.bench import Bench
from headprobe.compression.generation import generate
from headprobe.compression.session import compress
from headprobe.evaluation.known_scores import SHIPPED
from headprobe.evaluation.needle_folder import GridFolder
from headprobe.evaluation.needle_grid import GridOptions, NeedleGrid, run_grid
from headprobe.models.catalog import bundled_model_folder
from headprobe.models.loading import LoadedModel, load_model
from headprobe.models.weights import weights_fingerprint
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.run import score
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.score_file import read_score_file

POLICIES = ("full", "snapkv", "headkv-r2")
BUDGETS = (32, 128)
GRID_SECONDS = 40.0
SHIPPED_SCORES = bundled_model_folder() / SHIPPED / "demo--r2.json"
COMMITTED_GRID = RESULTS / "needles-cpu" / "trials.jsonl"


def run(bench: Bench, note: Any) -> None:
    loaded = load_model("demo", device=bench.device.type, dtype="float32")
    note("score", score_again(bench, loaded))
    note("compress", answers(bench, loaded))
    note("needles", grid(bench, loaded))


def score_again(bench: Bench, loaded: LoadedModel) -> dict[str, Any]:
    """The shipped scores' own plan; on a CPU a few trials of it, which are not compared."""
    shipped = read_score_file(SHIPPED_SCORES)
    probes = shipped.provenance.probes
    options = ScoreOptions(
        needles=probes["needles"]["name"], haystack=probes["haystack"]["name"], lengths=tuple(probes["lengths"]),
        depths=len(probes["depths"]), needles_per_cell=probes["needles_per_cell"], seed=probes["seed"],
        limit=None if bench.on_gpu else 2,
    )  # fmt: skip
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        made = score(loaded, options, output=Path(folder) / "scores.json").scores["r2"]
    found = {"seconds": round(time.perf_counter() - begin, 2), "trials": len(made.trials)}
    if len(made.trials) < len(shipped.trials):
        return found | {"comparison": f"{len(made.trials)} of {len(shipped.trials)} trials are not compared"}
    difference = float(np.abs(made.mean - shipped.mean).max())
    return found | {"largest_score": float(shipped.mean.max()), "largest_difference_from_cpu": difference}


def answers(bench: Bench, loaded: LoadedModel) -> dict[str, Any]:
    """Tokens of a few answers at budget 32, here and on the CPU."""
    there = load_model("demo", device="cpu", dtype="float32")
    lengths = (2048, 1024) if bench.on_gpu else (256,)
    prompts = prepare(loaded, ScoreOptions(lengths=lengths, depths=2, needles_per_cell=1)).prompts
    rows = []
    for policy in POLICIES if bench.on_gpu else POLICIES[1:2]:
        budget, scores = (None, None) if policy == "full" else (BUDGETS[0], SHIPPED_SCORES)
        for prompt in prompts:
            made = []
            for model in (loaded, there):
                with compress(model.model, policy, budget=budget, scores=scores) as session:
                    given = generate(session, prompt.input_ids, max_new_tokens=24, eos_token_ids=eos_token_ids(model))
                made.append(given)
            rows.append({"policy": policy, "same_tokens": made[0].tokens == made[1].tokens, "kernel": made[0].kernel,
                         "not_captured": made[0].graph_refusal})  # fmt: skip
    return {"answers": len(rows), "same": sum(row["same_tokens"] for row in rows), "rows": rows}


def grid(bench: Bench, loaded: LoadedModel) -> dict[str, Any]:
    """A part of the committed grid; prompts that have no row there are not compared."""
    options = GridOptions(
        policies=POLICIES, budgets=BUDGETS, lengths=(1024, 2048), depths=10, baselines=(), scores=(SHIPPED_SCORES,)
    )
    plan = NeedleGrid.build(loaded, options)
    if bench.shape.needle_prompts < len(plan.prompts):
        plan = NeedleGrid(**{**vars(plan), "prompts": plan.prompts[: bench.shape.needle_prompts]})
    with tempfile.TemporaryDirectory() as folder:
        own = GridFolder(Path(folder))
        with own.journal(plan.describe(loaded), resume=False, overwrite=False) as journal:
            rows = run_grid(loaded, plan, journal, seconds=GRID_SECONDS)
    hits = {name: sum(bool(row["exact_match"]) for row in rows if row["policy"] == name) for name in POLICIES}
    return {"rows": len(rows), "planned": plan.num_trials, "exact_matches": hits} | compared(loaded, rows)


def compared(loaded: LoadedModel, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """How many rows have the answer that the CPU gave."""
    if not COMMITTED_GRID.exists():
        return {"comparison": f"{COMMITTED_GRID.name} is not there"}
    head, *committed = (json.loads(line) for line in COMMITTED_GRID.read_text(encoding="utf-8").splitlines())
    if head["plan"]["model"]["weights_sha256"] != weights_fingerprint(loaded.model):
        return {"comparison": "the committed grid is of other weights"}
    there = {row["trial"]: row for row in committed}
    pairs = [(row, there[row["trial"]]) for row in rows if row["trial"] in there]
    return {
        "compared": len(pairs),
        "same_response": sum(a["response"] == b["response"] for a, b in pairs),
        "same_exact_match": sum(a["exact_match"] == b["exact_match"] for a, b in pairs),
    }

"""`python -m benchmarks.recall`: how well a model retrieves, in whole sentences.

Greedy answers over 10 depths x lengths, on retrieval and on reasoning needles. `exact`: the answer's sentence word for
word. `chose`: the answer's sentence rather than the distractor's, however well it was copied. Beside them the planted
heads' scores, where the model has any. Results go to `benchmarks/results/recall-<device>.json`.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.environment import environment, write_result
from headprobe.models.catalog import planted_heads
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.answer import chosen_sentence, exact_match
from headprobe.profiling.estimators import estimators
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.profiling.scoring import eos_token_ids

LENGTHS = (256, 512, 1024, 2048)


def recall(loaded: LoadedModel, options: ScoreOptions) -> dict[str, Any]:
    """Shares of exact and of chosen sentences by length, by relation and in all, and some failures."""
    prepared = prepare(loaded, options)
    specs = {spec.id: spec for spec in prepared.plan.trials()}
    profiler = Profiler(loaded.model, estimators("r2,retrieval"), eos_token_ids(loaded))
    counts: dict[str, list[list[bool]]] = defaultdict(list)
    failures: list[dict[str, str]] = []
    sums: dict[str, Any] = {"r2": 0.0, "retrieval": 0.0}
    for prompt, result in profiler.measure(prepared.prompts):
        assert isinstance(result, Measured)
        spec = specs[prompt.trial_id]
        response = str(loaded.tokenizer.decode(list(result.produced), skip_special_tokens=True)).strip()
        outcome = [exact_match(response, spec.needle.answer), chosen_sentence(response, spec.needle) == "answer"]
        for key in ("all", f"length {spec.length}", f"relation {spec.needle.relation}", f"depth {spec.depth:.0f}"):
            counts[key].append(outcome)
        sums = {name: sums[name] + result.scores[name] for name in sums}
        if not outcome[0]:
            failures.append({"trial": prompt.trial_id, "said": response, "answer": spec.needle.answer})
    table = {
        key: {"trials": len(rows), "exact": round(sum(r[0] for r in rows) / len(rows), 4),
              "chose": round(sum(r[1] for r in rows) / len(rows), 4)}
        for key, rows in sorted(counts.items())
    }  # fmt: skip
    heads = {name: (total / len(prepared.prompts)).tolist() for name, total in sums.items()}
    return {"recall": table, "mean_scores": heads, "failures": failures[:10]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--haystack", default="all")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--needles-per-cell", type=int, default=6)
    parser.add_argument("--needles", nargs="+", default=["retrieval", "reasoning"])
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    loaded = load_model(options.model)
    results: dict[str, Any] = {"environment": environment(), "model": loaded.name, "haystack": options.haystack}
    for needles in options.needles:
        results[needles] = recall(
            loaded,
            ScoreOptions(
                needles=needles, haystack=options.haystack, lengths=tuple(options.lengths),
                needles_per_cell=options.needles_per_cell,
            ),
        )  # fmt: skip
    if options.model == "demo":
        results["planted_copying_heads"] = [list(pair) for pair in planted_heads().copying]
    for needles in options.needles:
        print(needles, json.dumps(results[needles]["recall"], indent=1))
    print("written to", write_result("recall", results, options.output))


if __name__ == "__main__":
    main()

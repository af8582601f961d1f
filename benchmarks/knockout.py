"""`python -m benchmarks.knockout`: does the bundled model answer when its copying heads cannot see the answer?

Share of exact sentences with the answer's span hidden from no head, from the planted copying heads, from these and the
heads that share their keys, and from as many random others (five draws). Results go to
`benchmarks/results/knockout-<device>.json`.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from benchmarks.environment import environment, write_result
from headprobe.evaluation.knockout import answers_without
from headprobe.models.catalog import planted_heads
from headprobe.models.loading import load_model
from headprobe.probes.answer import exact_match
from headprobe.profiling.job import ScoreOptions, prepare

DRAWS = 5


def main() -> None:
    loaded = load_model("demo")
    prepared = prepare(loaded, ScoreOptions(lengths=(512, 1024), depths=10, needles_per_cell=1))
    needles = {spec.id: spec.needle for spec in prepared.plan.trials()}
    planted = list(planted_heads().copying)
    mates = [(layer, head ^ 1) for layer, head in planted]
    layers, width = loaded.geometry.shape
    others = [(la, h) for la in range(layers) for h in range(width) if (la, h) not in {*planted, *mates}]
    generator = np.random.default_rng(0)
    draws = [generator.choice(len(others), len(planted), replace=False) for _ in range(DRAWS)]

    def exact(heads: list[tuple[int, int]]) -> float:
        said = answers_without(loaded, prepared.prompts, heads)
        return float(np.mean([exact_match(text, needles[trial].answer) for trial, text in said.items()]))

    results: dict[str, Any] = {
        "environment": environment(),
        "num_trials": len(prepared.prompts),
        "exact_with_answer_hidden_from": {
            "no_head": exact([]),
            "planted_copying_heads": exact(planted),
            "planted_and_the_heads_beside_them": exact(planted + mates),
            "as_many_random_others": [exact([others[i] for i in draw]) for draw in draws],
        },
    }
    print(json.dumps(results, indent=2))
    print("written to", write_result("knockout", results))


if __name__ == "__main__":
    main()

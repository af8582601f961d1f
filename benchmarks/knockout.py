"""`python -m benchmarks.knockout`: what it costs a model to switch its best heads off, by all modes, with the machine.

`headprobe knockout` on the bundled model and its shipped scores, or on a model and a score file of yours. Results go to
`benchmarks/results/knockout-<device>.json`, or with `--name` to `knockout-<name>-<device>.json`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import headprobe
from benchmarks.environment import environment, write_result
from headprobe.evaluation.knockout.switched_off import MODES
from headprobe.models.catalog import bundled_model_folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    shipped = bundled_model_folder() / "scores" / "demo--r2.json"
    parser.add_argument("--scores", type=Path, default=shipped)
    parser.add_argument("--model", default=None, help="default: the one that the score file names")
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--top", default="1,4,10")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--needles-per-cell", type=int, default=2)
    parser.add_argument("--name", default=None)
    given = parser.parse_args()
    results = {}
    for mode in given.modes.split(","):
        options = headprobe.KnockoutOptions(
            mode=mode,
            top=tuple(map(int, given.top.split(","))),
            lengths=(given.length,),
            needles_per_cell=given.needles_per_cell,
        )
        results[mode] = headprobe.knockout(given.scores, given.model, options).record()
        print(mode, results[mode]["verdict"], flush=True)
    name = "knockout" if given.name is None else f"knockout-{given.name}"
    print("written to", write_result(name, {"environment": environment(), "results": results}))


if __name__ == "__main__":
    main()

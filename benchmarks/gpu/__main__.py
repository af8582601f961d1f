"""`python -m benchmarks.gpu`: kernels, decoding, prefill, memory, batches and scoring on a GPU, against their targets.

The smallest and most telling parts come first; each writes what it finds at once, so that a stop loses little, and one
that fails, hangs or takes its process with it is recorded and the rest goes on. A part that would not fit into the time
that is left is skipped. Results go to `gpu-<device>.json` and `.md` in `benchmarks/results/`. `--device cpu --shape
tiny` shows in a minute that all parts run; its numbers say nothing about a GPU. `--real-model` names a real model's
folder or GGUF file, for the part `real`.
"""

from __future__ import annotations

import argparse
import importlib
import time
import traceback
from pathlib import Path

import torch

from benchmarks.environment import RESULTS
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.record import Record, say
from benchmarks.gpu.shapes import LLAMA3_8B, SHAPES
from benchmarks.gpu.supervisor import BEGINS, Part, child_command, supervise

PARTS = (
    Part("environment", 1), Part("bandwidth", 2), Part("numerics", 40), Part("fused", 10), Part("kernels", 5),
    Part("projections", 50), Part("decode_short", 12), Part("profile", 10), Part("decode_batch", 15),
    Part("decode_long", 10), Part("prefill", 40), Part("profile_prefill", 20), Part("memory", 20), Part("batch", 30),
    Part("bundled", 20), Part("scoring", 60), Part("profile_scoring", 30), Part("scoring_long", 20),
    Part("real", 200),
)  # fmt: skip


def run(bench: Bench, parts: tuple[Part, ...]) -> None:
    """One part after another."""
    for part in parts:
        if bench.shape is LLAMA3_8B and part.seconds > bench.seconds_left:
            reason = f"needs about {part.seconds:.0f} s, {bench.seconds_left:.0f} s are left"
            if part.name not in bench.record.parts:  # what an earlier run found of it stays
                bench.record.end(part.name, "skipped", reason=reason)
            say(f"{part.name}: skipped, {reason}")
            continue
        print(f"{BEGINS}{part.name}", flush=True)
        run_part(bench, part.name)


def run_part(bench: Bench, name: str) -> None:
    """One part; what goes wrong in it is recorded."""
    begin = time.perf_counter()
    bench.record.begin(name)

    def note(what: str, found: object) -> None:
        bench.record.note(name, what, found)
        say(f"{name}: {what}: {found}")

    try:
        with torch.inference_mode():
            importlib.import_module(f"benchmarks.gpu.parts.{name}").run(bench, note)
    except Exception as error:  # one part's fault must not cost the others
        traceback.print_exc()
        line = (str(error).strip().splitlines() or [""])[0][:300]
        failure: str | None = f"{type(error).__name__}: {line}"
    else:
        failure = None
    bench.free()
    seconds = round(time.perf_counter() - begin, 1)
    if failure is None:
        bench.record.end(name, "done", seconds=seconds)
    else:
        bench.record.end(name, "failed", seconds=seconds, error=failure)
        say(f"{name}: failed: {failure}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--shape", choices=tuple(SHAPES), default=LLAMA3_8B.name)
    parser.add_argument("--only", default="", help="names of parts, separated by commas")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--add", action="store_true", help="keep what --out holds of other parts, of an earlier run")
    parser.add_argument("--seconds", type=float, default=520.0)
    parser.add_argument("--real-model", help="a folder or GGUF file, for the part `real`")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device: take --device cpu --shape tiny for a trial run")
    names = [name for name in given.only.split(",") if name]
    unknown = set(names) - {part.name for part in PARTS}
    if unknown:
        parser.error(f"unknown part {sorted(unknown)[0]!r}: known are {', '.join(part.name for part in PARTS)}")
    if "real" in names and given.real_model is None:
        parser.error("the part real needs a model: name one with --real-model")
    wanted = names or [part.name for part in PARTS if part.name != "real" or given.real_model is not None]
    parts = tuple(part for part in PARTS if part.name in wanted or part.name == "bandwidth")
    shape = SHAPES[given.shape]
    counts = given.device == "cuda" and shape is LLAMA3_8B
    record = Record(given.out, given.device, shape.name, counts=counts)
    if given.child:
        record.reload()
        run(Bench(torch.device(given.device), shape, record, given.seconds, real_model=given.real_model), parts)
        return
    if given.add and record.json_file.exists():
        record.reload()
    record.write()
    command = child_command(given.device, given.shape, given.out.resolve(), given.real_model)
    supervise(parts, command, record, given.seconds, limited=given.device == "cuda" or shape is not LLAMA3_8B)
    say("", record.table(), f"written to {record.json_file} and {record.table_file}")


if __name__ == "__main__":
    main()

"""What a run really takes, measured in a process of its own, and what was said of it beforehand.

`python -m tests.models.peak_memory MODEL HOW LENGTH CHUNK` prints both as JSON, in bytes beyond what Python and torch
take before the model is loaded. HOW: `score`; `compress` (one layer's keys and values at a time) or `eval` (all).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from headprobe.compression.generation import AnswerOptions, generate
from headprobe.compression.many_answers import Asked, answer
from headprobe.compression.read_once import read_once
from headprobe.compression.session import compress, make_plan
from headprobe.evaluation.memory import reading_need
from headprobe.models.loading import LoadedModel, load_model
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.preflight import run_cost
from headprobe.profiling.profiler import Profiler

NEW = 4


def resident(name: str) -> int:
    """A line of the process's status, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main(folder: str, how: str, length: int, chunk: int) -> dict[str, int]:
    """Load, run, and read off the highest use."""
    torch.ones(64, 64) @ torch.ones(64, 64)  # kernels are loaded now
    before = resident("VmRSS")
    loaded = load_model(folder, device="cpu")
    job = prepare(loaded, ScoreOptions(lengths=(length,), depths=1, needles_per_cell=1, prefill_chunk=chunk))
    if how == "score":
        stated = run_cost(loaded, job.prompts, chunk).memory.total
        profiler = Profiler(loaded.model, job.estimators, set(), prefill_chunk=chunk, window=loaded.window)
        assert len(list(profiler.measure(job.prompts))) == len(job.prompts)
    else:
        ids = job.prompts[0].input_ids
        stated = reading_need(loaded, len(ids), prefill_chunk=chunk, one_layer=how == "compress").total
        (one_by_one if how == "compress" else all_at_once)(loaded, ids, chunk)
    return {"stated": stated, "measured": resident("VmHWM") - before}


def one_by_one(loaded: LoadedModel, ids: Any, chunk: int) -> None:
    """A cache that is compressed layer by layer."""
    with compress(loaded.model, "snapkv", budget=64, prefill_chunk=chunk) as session:
        generate(session, ids, max_new_tokens=NEW)


def all_at_once(loaded: LoadedModel, ids: Any, chunk: int) -> None:
    """A reading that serves several policies."""
    with read_once(loaded.model, ["snapkv", "streaming-llm"], prefill_chunk=chunk) as reader:
        reading = reader.read(ids)
        for name in ("snapkv", "streaming-llm"):
            answer(reading, make_plan(loaded.model, name, budget=64), Asked(AnswerOptions(NEW)))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))

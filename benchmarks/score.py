"""`python -m benchmarks.score`: how long a score takes, as ratios within one run.

Against plain prefill of the same prompts one by one (the floor of any method that shares nothing), and, on the bundled
model, against the published procedure. Peak memory: the highest use during the work, less that before it. Results go to
`benchmarks/results/score-<device>.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.environment import environment, write_result
from benchmarks.published import published_trial
from headprobe.geometry import ModelGeometry
from headprobe.models.devices import PeakMemory
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators import estimators
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.profiling.prefix import prefix_order
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.profiling.scoring import eos_token_ids


def random_llama(demo: LoadedModel) -> LoadedModel:
    """A random Llama of about 100 million parameters behind the bundled model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2048, hidden_size=768, intermediate_size=2304, num_hidden_layers=14, num_attention_heads=12,
        num_key_value_heads=4, max_position_embeddings=4096,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model = model.to(demo.device, demo.model.dtype).eval()
    return replace(demo, model=model, geometry=ModelGeometry.from_config(config), name="random-llama-100m")


def plain_prefill(model: Any, prompts: list[Prompt]) -> None:
    """Every prompt from its first token, with a cache, no logits but the last: what a user of transformers writes."""
    with torch.inference_mode():
        for prompt in prompts:
            ids = torch.tensor([prompt.input_ids], device=model.device)
            model(ids, use_cache=True, logits_to_keep=1).logits.sum().item()


def headprobe_score(loaded: LoadedModel, prompts: list[Prompt], method: str = "r2") -> list[Measured]:
    """All prompts through the profiler; a trial that did not fit would spoil the comparison, so it is an error."""
    profiler = Profiler(loaded.model, estimators(method), eos_token_ids(loaded))
    results = [result for _, result in profiler.measure(prompts)]
    skipped = [r for r in results if not isinstance(r, Measured)]
    if skipped:
        raise RuntimeError(f"{len(skipped)} trials did not fit")
    return [r for r in results if isinstance(r, Measured)]


def with_own_answers(loaded: LoadedModel, prompts: list[Prompt]) -> list[Prompt]:
    """The prompts with the model's own greedy output as gold answer: as with a model that answers well."""
    own = {}
    profiler = Profiler(loaded.model, estimators("r2"), set())
    for prompt, result in profiler.measure(prompts):
        assert isinstance(result, Measured)
        own[prompt.trial_id] = result.produced
    return [replace(p, answer_ids=own[p.trial_id]) for p in prompts]


def seconds(run: Callable[[], object]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def compare(loaded: LoadedModel, prompts: list[Prompt], rounds: int) -> dict[str, Any]:
    """Times of ours and of plain prefill, in turn, and their ratio round by round."""
    plain_prefill(loaded.model, prompts[:1])
    headprobe_score(loaded, prompts[:1])
    ours, plain = [], []
    for _ in range(rounds):
        plain.append(seconds(lambda: plain_prefill(loaded.model, prompts)))
        ours.append(seconds(lambda: headprobe_score(loaded, prompts)))
    _, shared = prefix_order(prompts)
    tokens = sum(len(p.input_ids) for p in prompts)
    ratios = [a / b for a, b in zip(ours, plain, strict=True)]
    return {
        "model": loaded.name,
        "num_trials": len(prompts),
        "longest_prompt": max(len(p.input_ids) for p in prompts),
        "tokens": tokens,
        "share_of_tokens_computed": round((tokens - sum(shared) + shared[0]) / tokens, 4),
        "score_s": ours,
        "plain_prefill_s": plain,
        "score_over_plain_prefill": round(statistics.median(ratios), 4),
    }


def against_published(loaded: LoadedModel, prompts: list[Prompt]) -> dict[str, Any]:
    """Ours and the published procedure on the same prompts, after checking that they give the same scores."""
    ours_results: list[Measured] = []
    ours = seconds(lambda: ours_results.extend(headprobe_score(loaded, prompts)))
    by_trial = dict(zip([prompts[i].trial_id for i in prefix_order(prompts)[0]], ours_results, strict=True))
    before = loaded.model.config._attn_implementation
    loaded.model.set_attn_implementation("eager")
    worst, theirs = 0.0, 0.0
    try:
        for prompt in prompts:
            begin = time.perf_counter()
            _, scores = published_trial(loaded.model, prompt, eos_token_ids(loaded))
            theirs += time.perf_counter() - begin
            worst = max(worst, float((torch.tensor(scores) - by_trial[prompt.trial_id].scores["r2"]).abs().max()))
    finally:
        loaded.model.set_attn_implementation(before)
    if worst > 1e-4:
        raise RuntimeError(f"the two procedures differ by {worst}: their times cannot be compared")
    return {
        "num_trials": len(prompts), "score_s": ours, "published_s": theirs,
        "published_over_score": round(theirs / ours, 2), "largest_difference": worst,
    }  # fmt: skip


def peak_memory(kind: str, model: str) -> int:
    """Bytes that a process of its own takes at its peak beyond what the loaded model and prompts take.

    There glibc gives memory back as soon as it is freed; otherwise the peak would be what its arenas hoard.
    """
    command = [sys.executable, "-m", "benchmarks.score", "--peak", kind, "--model", model]
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "MALLOC_TRIM_THRESHOLD_": "0",
        "MALLOC_ARENA_MAX": "1",
    }
    out = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
    return int(out.strip().splitlines()[-1])


def print_peak(kind: str, model: str) -> None:
    loaded, prompts = subjects(model)
    longest = max(prompts, key=lambda p: len(p.input_ids))
    plain_prefill(loaded.model, [min(prompts, key=lambda p: len(p.input_ids))])
    peak = PeakMemory(loaded.device)
    peak.start()
    if kind == "score":
        headprobe_score(loaded, prompts)
    else:
        plain_prefill(loaded.model, [longest])
    print(peak.bytes())


def prompts_of(job: ScoreJob) -> list[Prompt]:
    """The needle prompts of a job, which has no other readings."""
    return [prompt for prompt in job.prompts if isinstance(prompt, Prompt)]


def subjects(model: str) -> tuple[LoadedModel, list[Prompt]]:
    demo = load_model("demo")
    if model == "demo":
        return demo, prompts_of(prepare(demo, ScoreOptions()))
    options = ScoreOptions(lengths=(1024, 2048), depths=10, needles_per_cell=1)
    return random_llama(demo), prompts_of(prepare(demo, options))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--departing", action="store_true", help="also the random Llama with answers it does not give")
    parser.add_argument("--peak", choices=["score", "prefill"], help=argparse.SUPPRESS)
    parser.add_argument("--model", default="demo", help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    if options.peak:
        print_peak(options.peak, options.model)
        return
    results: dict[str, Any] = {"environment": environment()}

    def note(name: str, found: dict[str, Any]) -> None:
        """Print and write what is known so far, so that a stop loses little."""
        results[name] = found
        print(name, json.dumps(found, indent=2), flush=True)
        write_result("score", results, options.output)

    demo, prompts = subjects("demo")
    note("demo", compare(demo, prompts, options.rounds))
    note("demo_against_published", against_published(demo, prompts))
    note("peak_memory_demo", peak_ratio("demo"))
    llama, llama_prompts = subjects("llama")
    note("random_llama_answering", compare(llama, with_own_answers(llama, llama_prompts), 1))
    note("peak_memory_llama", peak_ratio("llama"))
    if options.departing:
        note("random_llama_departing", compare(llama, llama_prompts, 1))


def peak_ratio(model: str) -> dict[str, Any]:
    score, prefill = peak_memory("score", model), peak_memory("prefill", model)
    return {"score_bytes": score, "longest_prefill_bytes": prefill, "ratio": round(score / prefill, 3)}


if __name__ == "__main__":
    main()

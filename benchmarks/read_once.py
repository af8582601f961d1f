"""`python -m benchmarks.read_once`: all policies at five budgets from one reading, against as many separate runs.

The bundled model in float32 on a needle prompt of 2k tokens, 16 new tokens, all 15 policies at budgets 32 to 512
(`full` once). Every separate run is really run, and kept positions and tokens are compared. Head scores are random
numbers, the same on both sides: which heads they favour changes neither side's work. Whether decoding together pays is
seen from three ways: `alone` (one variant after another), `one cache` (as many together as the largest single cache has
bytes, the default) and `unlimited`.
"""

from __future__ import annotations

import argparse
import gc
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.environment import environment, write_result
from headprobe.compression.generation import AnswerOptions, generate
from headprobe.compression.many_answers import Asked, answer, answer_together, batched
from headprobe.compression.policies import POLICIES, CompressionPlan
from headprobe.compression.read_once import read_once
from headprobe.compression.session import compress, make_plan
from headprobe.evaluation.questions import needle_question
from headprobe.models.loading import LoadedModel, load_model
from headprobe.scores.head_scores import HeadScores, Method, Trial
from headprobe.scores.provenance import ModelIdentity, Provenance

BUDGETS = (32, 64, 128, 256, 512)
NEW_TOKENS, WARM_UP_TOKENS = 16, 64
GOAL_OF_SEPARATE, GOAL_OF_FULL = 0.15, 2.5
LIMITS: dict[str, int | None] = {"alone": 1, "one cache": None, "unlimited": 1 << 62}
Prompt = tuple[int, ...]


def random_scores(loaded: LoadedModel) -> HeadScores:
    """One trial of uneven scores, always the same."""
    table = np.random.default_rng(0).gamma(0.3, size=loaded.geometry.shape)
    trial = Trial("t", "n", 64, 0.0, True, 1.0, "", 1, table)
    return HeadScores(loaded.geometry, Method("r2", "", 1, {}), (trial,), Provenance(ModelIdentity("random")))


def made_plans(loaded: LoadedModel, budgets: tuple[int, ...]) -> list[CompressionPlan]:
    """`full` once, every other policy at every budget."""
    scores = random_scores(loaded)
    return [
        make_plan(loaded.model, name, budget=budget, scores=scores)
        for name in POLICIES
        for budget in ((None,) if name == "full" else budgets)
    ]


def run_separately(loaded: LoadedModel, plan: CompressionPlan, prompt: Prompt) -> tuple[float, Any, Any]:
    """Seconds of one run that reads the prompt for itself, its tokens, and the positions that it kept."""
    gc.collect()
    started = time.perf_counter()
    with compress(
        loaded.model, plan.policy, budget=plan.budget, slack=NEW_TOKENS, keep_positions=True,
        scores=random_scores(loaded) if plan.policy.needs_scores else None,
    ) as session:  # fmt: skip
        made = generate(session, prompt, max_new_tokens=NEW_TOKENS)
        seconds = time.perf_counter() - started
        assert session.cache is not None
        return seconds, made.tokens, kept(session.cache)


def kept(cache: Any) -> list[list[list[int]]]:
    """Positions by layer and head."""
    return [[positions.tolist() for positions in layer.positions] for layer in cache.ragged_layers]


def run_once(loaded: LoadedModel, plans: list[CompressionPlan], prompt: Prompt, most_bytes: int | None) -> Any:
    """Seconds of reading, of making all caches and of decoding, all in all; tokens by place; sequences by batch."""
    gc.collect()
    started = time.perf_counter()
    tokens: dict[int, tuple[int, ...]] = {}
    making, sizes = 0.0, []
    asked = Asked(AnswerOptions(NEW_TOKENS), slack=NEW_TOKENS)
    with read_once(loaded.model, [plan.policy for plan in plans]) as reader:
        reading = reader.read(prompt)
        for places in batched(reading, plans, asked, most_bytes=most_bytes):
            made, _ = answer_together(reading, [plans[place] for place in places], asked)
            making += made[0].ttft_s - reading.cost.seconds
            sizes.append(len(places))
            tokens |= {place: given.tokens for place, given in zip(places, made, strict=True)}
    total = time.perf_counter() - started
    reading_s = reading.cost.seconds
    times = {
        "reading_s": reading_s, "making_caches_s": making, "decoding_s": total - reading_s - making, "total_s": total
    }  # fmt: skip
    return times, tokens, sizes


def kept_from_one_reading(loaded: LoadedModel, plans: list[CompressionPlan], prompt: Prompt) -> list[Any]:
    """The positions that each plan's cache from one reading holds."""
    asked = Asked(AnswerOptions(1), slack=1, keep_positions=True)
    with read_once(loaded.model, [plan.policy for plan in plans]) as reader:
        reading = reader.read(prompt)
        return [kept(answer(reading, plan, asked)[1]) for plan in plans]


def measured(loaded: LoadedModel, prompt: Prompt, budgets: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """All numbers of one comparison. A round has every way once and its part of the separate runs, so that a busy
    neighbour slows both sides."""
    plans = made_plans(loaded, budgets)
    run_separately(loaded, plans[0], prompt[:WARM_UP_TOKENS])
    separate: dict[int, Any] = {}
    full_runs: list[float] = []
    runs: dict[str, list[Any]] = {name: [] for name in LIMITS}
    for number in range(rounds):
        for name, most in LIMITS.items():
            runs[name].append(run_once(loaded, plans, prompt, most))
        full_runs.append(run_separately(loaded, plans[0], prompt)[0])
        for place in range(number, len(plans), rounds):
            separate[place] = run_separately(loaded, plans[place], prompt)
    separate_s, full_run_s = sum(run[0] for run in separate.values()), median(full_runs)
    positions = kept_from_one_reading(loaded, plans, prompt)
    ways = {}
    for name, found in runs.items():
        times, tokens, sizes = sorted(found, key=lambda way: way[0]["total_s"])[len(found) // 2]
        ways[name] = times | {
            "batches": len(sizes),
            "largest_batch": max(sizes),
            "share_of_separate": times["total_s"] / separate_s,
            "times_full_run_beside_decoding": (times["total_s"] - times["decoding_s"]) / full_run_s,
            "same_tokens": sum(tokens[place] == separate[place][1] for place in separate),
        }
    one = ways["one cache"]
    return {
        "prompt_tokens": len(prompt),
        "new_tokens": NEW_TOKENS,
        "budgets": list(budgets),
        "variants": len(plans),
        "rounds": rounds,
        "separate_s": separate_s,
        "separate_s_by_policy": {
            name: sum(separate[place][0] for place, plan in enumerate(plans) if plan.policy.name == name)
            for name in POLICIES
        },
        "full_run_s": full_run_s,
        "same_positions": sum(positions[place] == separate[place][2] for place in separate),
        "ways": ways,
        "goals": {
            "share_of_separate": GOAL_OF_SEPARATE,
            "times_full_run_beside_decoding": GOAL_OF_FULL,
            "reached": one["share_of_separate"] <= GOAL_OF_SEPARATE
            and one["times_full_run_beside_decoding"] <= GOAL_OF_FULL,
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--length", type=int, default=2048, help="tokens of the needle prompt with its answer")
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS))
    parser.add_argument("--rounds", type=int, default=5, help="of the runs from one reading; their median counts")
    parser.add_argument("--output", type=Path, default=None)
    given = parser.parse_args()
    loaded = load_model(given.model, dtype="float32")
    prompt = needle_question(loaded, given.length).input_ids
    found = measured(loaded, prompt, tuple(given.budgets), given.rounds)
    result = {"environment": environment(), "model": loaded.name, **found}
    print(
        f"{found['variants']} separate runs {found['separate_s']:.1f} s, one of them (full) {found['full_run_s']:.2f} s"
    )
    for name, way in found["ways"].items():
        print(
            f"{name:>10}: {way['total_s']:.2f} s, {way['share_of_separate']:.3f} of separate runs; without decoding "
            f"{way['times_full_run_beside_decoding']:.2f} times one full run; {way['same_tokens']} same answers"
        )
    print("written to", write_result("read-once", result, given.output))


if __name__ == "__main__":
    main()

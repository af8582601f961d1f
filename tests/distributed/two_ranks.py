"""What one process, or two that share a model's heads, make of a tiny model: scores, compressed answers, a fingerprint.

`python -m tests.distributed.two_ranks MODEL OUT` writes it as JSON, under torchrun from the first process. It is the
same code either way: the heads are spread where torchrun says that there are several processes.
"""

from __future__ import annotations

import json
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from headprobe.compression.fused.layers import unfit
from headprobe.compression.generation import AnswerOptions, generate, generate_batch
from headprobe.compression.many_answers import Asked, answers
from headprobe.compression.policies import POLICIES, make_policy
from headprobe.compression.read_once import read_once
from headprobe.compression.session import compress, make_plan
from headprobe.models.loading import LoadedModel, load_model
from headprobe.models.releases import with_cache
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.profiling.ranks import Ranks
from tests.compression.scores import random_scores

METHODS = ("r2", "value", "contrast", "logit", "qr", "induction", "reconstruction")
NEW = 4


def main(model: str, out: Path) -> None:
    """Measure, and write from the first process."""
    ranks = Ranks.of_environment()
    with nullcontext() if ranks is None else ranks.sharing_heads():
        loaded = load_model(model, device="cpu", tensor_parallel=ranks is not None)
        found = {
            "weights_sha256": loaded.weights_sha256,
            "scores": scores_of(loaded),
            "answers": {name: answer_of(loaded, name) for name in POLICIES},
            "quantized": answer_of(loaded, "ada-snapkv", kv_cache_dtype="int4"),
            "together": together(loaded),
            "batch": batch(loaded),
            "turns": turns(loaded),
            "unfit": unfit_for_fusing(loaded),
        }
    if ranks is None or ranks.rank == 0:
        out.write_text(json.dumps(found), encoding="utf-8")


def scores_of(loaded: LoadedModel) -> dict[str, Any]:
    """By method and trial the scores `[L, H]`, and the tokens."""
    options = ScoreOptions(methods=METHODS, lengths=(300,), depths=2, needles_per_cell=1, needles="reasoning")
    job = prepare(loaded, options)
    profiler = Profiler(loaded.model, job.estimators, set(), prefill_chunk=256, window=loaded.window)
    found: dict[str, Any] = {}
    for prompt, measured in profiler.measure(job.prompts):
        assert isinstance(measured, Measured)
        tables = {name: table.tolist() for name, table in measured.scores.items()}
        found[prompt.trial_id] = {"tokens": list(measured.produced), "scores": tables}
    return found


def prompt_of(loaded: LoadedModel, count: int = 70, seed: int = 1) -> list[int]:
    """Random tokens."""
    vocabulary = loaded.model.config.vocab_size
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, vocabulary, (count,), generator=generator).tolist()


def plan_of(loaded: LoadedModel, name: str) -> dict[str, Any]:
    """Policy, budget and scores, as `compress` takes them."""
    policy = make_policy(name)
    scores = random_scores(loaded.geometry) if policy.needs_scores else None
    return {"policy": policy, "budget": None if policy.keeps_all else 16, "scores": scores}


def answer_of(loaded: LoadedModel, name: str, **serving: Any) -> dict[str, Any]:
    """The logits behind the prompt and behind a later token, and all that an answer states but its times."""
    prompt = prompt_of(loaded)
    with compress(loaded.model, **plan_of(loaded, name), **serving) as session:
        with torch.inference_mode():
            first = loaded.model(input_ids=torch.tensor([prompt]), **with_cache(loaded.model, session.new_cache()))
            later = loaded.model(input_ids=torch.tensor([[7]]), **with_cache(loaded.model, session.cache))
        made = generate(session, prompt, max_new_tokens=NEW)
    logits = torch.stack([first.logits[0, -1], later.logits[0, -1]]).tolist()
    return {"logits": logits, **stated(made)}


def stated(made: Any) -> dict[str, Any]:
    """What an answer states, times and memory aside."""
    return vars(replace(made, ttft_s=0.0, tokens_per_s=None, peak_bytes=None, graph_refusal=None))


def together(loaded: LoadedModel) -> list[Any]:
    """Several policies decoded as batches from one reading."""
    names = ("full", "snapkv", "ada-snapkv", "headkv-r2", "streaming-llm")
    plans = [
        make_plan(loaded.model, given.pop("policy"), **given) for given in (plan_of(loaded, name) for name in names)
    ]
    with read_once(loaded.model, [plan.policy for plan in plans]) as reader:
        reading = reader.read(prompt_of(loaded))
        found = sorted(answers(reading, plans, Asked(AnswerOptions(NEW))), key=lambda each: each.place)
    return [[each.together, *map(stated, each.generations)] for each in found]


def batch(loaded: LoadedModel) -> dict[str, Any]:
    """Prompts that are read one by one and decoded together."""
    prompts = [prompt_of(loaded, 40, 3), prompt_of(loaded, 61, 4)]
    with compress(loaded.model, **plan_of(loaded, "ada-snapkv")) as session:
        made = generate_batch(session, prompts, max_new_tokens=NEW)
    return vars(replace(made, prefill_s=0.0, tokens_per_s=None, peak_bytes=None, graph_refusal=None))


def turns(loaded: LoadedModel) -> list[int]:
    """transformers' own `generate`, two turns of a conversation."""
    ids = torch.tensor([prompt_of(loaded)])
    more = torch.tensor([prompt_of(loaded, 5, 9)])
    options: dict[str, Any] = {"max_new_tokens": NEW, "do_sample": False, "min_new_tokens": NEW, "pad_token_id": 0}
    with compress(loaded.model, **plan_of(loaded, "h2o")) as session:
        said = session.generate(ids, **options)
        said = session.generate(torch.cat([said, more], 1), **options)
    return [int(token) for token in said[0, ids.shape[1] :]]


def unfit_for_fusing(loaded: LoadedModel) -> str | None:
    """Why a layer's step could not be fused, wherever it runs."""
    with compress(loaded.model, "full") as session, torch.inference_mode():
        cache = session.new_cache()
        loaded.model(input_ids=torch.tensor([prompt_of(loaded)]), **with_cache(loaded.model, cache))
        return unfit(loaded.model, cache)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

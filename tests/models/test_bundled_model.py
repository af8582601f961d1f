"""The bundled model retrieves, and it does so with the heads that were planted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from headprobe.models.catalog import bundled_model_folder, planted_heads
from headprobe.models.loading import load_model
from headprobe.probes.answer import chosen_sentence, exact_match
from headprobe.profiling.estimators import estimators
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.profiling.scoring import eos_token_ids
from tests.evaluation.knockout.plain_answers import answers_without


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


def measured(demo: Any, prepared: ScoreJob) -> dict[str, Measured]:
    profiler = Profiler(demo.model, estimators("r2,retrieval"), eos_token_ids(demo))
    results = {p.trial_id: r for p, r in profiler.measure(prepared.prompts)}
    return {trial: r for trial, r in results.items() if isinstance(r, Measured)}


def responses(demo: Any, prepared: ScoreJob) -> dict[str, str]:
    return {
        t: demo.tokenizer.decode(list(r.produced), skip_special_tokens=True)
        for t, r in measured(demo, prepared).items()
    }


def share_exact(prepared: ScoreJob, said: dict[str, str]) -> float:
    needles = {spec.id: spec.needle for spec in prepared.plan.trials()}
    return float(np.mean([exact_match(text, needles[trial].answer) for trial, text in said.items()]))


def test_it_is_small_and_of_a_stock_architecture(demo: Any) -> None:
    assert (bundled_model_folder() / "model.safetensors").stat().st_size < 12_000_000
    assert demo.architecture == "Qwen3ForCausalLM"
    assert demo.geometry.num_key_value_heads < demo.geometry.num_attention_heads
    assert demo.window >= 2048


@pytest.mark.parametrize("needles", ["retrieval", "reasoning"])
def test_it_answers_with_exact_sentences(demo: Any, needles: str) -> None:
    prepared = prepare(demo, ScoreOptions(needles=needles, lengths=(256, 1024), depths=5, needles_per_cell=4))
    said = responses(demo, prepared)
    specs = {spec.id: spec for spec in prepared.plan.trials()}
    chose = np.mean([chosen_sentence(text, specs[trial].needle) == "answer" for trial, text in said.items()])
    assert share_exact(prepared, said) >= 0.9
    assert chose >= 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("needles", "least"), [("retrieval", 0.92), ("reasoning", 0.94)])
def test_its_recall_over_the_whole_grid(demo: Any, needles: str, least: float) -> None:
    """A little below what the model card states; the goal of 0.97 is not reached on retrieval needles."""
    lengths = (256, 512, 1024, 2048)
    prepared = prepare(demo, ScoreOptions(needles=needles, lengths=lengths, needles_per_cell=6))
    assert share_exact(prepared, responses(demo, prepared)) >= least


def test_the_profiler_reads_the_same_answer_as_generate(demo: Any) -> None:
    prepared = prepare(demo, ScoreOptions(lengths=(300,), depths=3, needles_per_cell=1))
    said = responses(demo, prepared)
    assert said == answers_without(demo, prepared.prompts, [])


@pytest.mark.parametrize("method", ["r2", "retrieval"])
def test_the_planted_heads_rank_at_the_top_and_most_others_score_near_zero(demo: Any, method: str) -> None:
    prepared = prepare(demo, ScoreOptions(lengths=(512, 1024), depths=5, needles_per_cell=2))
    scores = torch.stack([r.scores[method] for r in measured(demo, prepared).values()]).mean(0)
    planted = set(planted_heads().copying)
    beside = {(layer, head ^ 1) for layer, head in planted}  # they share keys and values, and learn to follow
    heads = [divmod(i, scores.shape[1]) for i in torch.argsort(-scores.flatten()).tolist()]
    assert planted <= set(heads[: len(planted) + 1])
    assert all(scores[head] < 0.2 for head in heads if head not in planted | beside)
    assert scores.flatten().median() < 0.02


def test_hiding_the_answer_from_the_planted_heads_destroys_it_and_from_others_does_not(demo: Any) -> None:
    prepared = prepare(demo, ScoreOptions(lengths=(512,), depths=6, needles_per_cell=2))
    planted = planted_heads().copying
    mates = {(layer, head ^ 1) for layer, head in planted}
    shape = demo.geometry.shape
    others = [(la, h) for la in range(shape[0]) for h in range(shape[1]) if (la, h) not in {*planted, *mates}]
    chosen = np.random.default_rng(0).choice(len(others), len(planted), replace=False)
    shares = {}
    for name, heads in {"none": [], "planted": planted, "random": [others[i] for i in chosen]}.items():
        shares[name] = share_exact(prepared, answers_without(demo, prepared.prompts, heads))
    assert shares["none"] >= 0.9
    assert shares["random"] >= shares["none"] - 0.2
    assert shares["planted"] <= 0.05

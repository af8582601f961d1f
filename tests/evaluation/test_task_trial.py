"""A prompt of a task that is read once for all policies and budgets gives the rows of runs of their own."""

from __future__ import annotations

from typing import Any

import pytest

from headprobe.compression.policies import make_policy
from headprobe.errors import DeviceMemoryError
from headprobe.evaluation import trials as engine
from headprobe.evaluation.task_prompts import TaskPrompt
from headprobe.evaluation.task_trial import TaskTrial, answers_of
from headprobe.evaluation.trials import Running
from headprobe.evaluation.variants import variants
from headprobe.models.loading import LoadedModel, load_model

TIMES = ("ttft_s", "s_per_token", "peak_bytes", "seconds")
POLICIES = ("full", "snapkv", "h2o", "razor", "headkv-r2")


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo", device="cpu")


def trials_of(demo: LoadedModel, query_agnostic: bool) -> list[TaskTrial]:
    text = "The lamp in the old house is green. Nobody goes there. " * 8 + "Question: What is green? Answer:"
    ids = tuple(demo.tokenizer(text)["input_ids"])
    prompt = TaskPrompt("own/1", "own", ids, ("the lamp",), (), "qa_f1", 6, False, "own/1", len(ids) - 9)
    found = variants(demo, [make_policy(name) for name in POLICIES], baselines=("random",))
    return [
        TaskTrial(prompt, variant, budget, query_agnostic)
        for variant in found
        for budget in ((None,) if variant.policy.keeps_all else (40, 64))
    ]


def rows(demo: LoadedModel, trials: list[TaskTrial], **how: Any) -> dict[str, dict[str, Any]]:
    found = {trial.id: row for trial, row in answers_of(demo, trials, Running(**how))}
    return {name: {key: value for key, value in row.items() if key not in TIMES} for name, row in found.items()}


@pytest.mark.parametrize("query_agnostic", [False, True])
def test_rows_of_one_reading_are_those_of_separate_runs(demo: LoadedModel, query_agnostic: bool) -> None:
    trials = trials_of(demo, query_agnostic)
    alone = {name: row for trial in trials for name, row in rows(demo, [trial]).items()}
    assert len(alone) == 1 + 2 * 6
    assert sum(row["evicts"] for row in alone.values()) == 12
    assert rows(demo, trials) == alone
    assert rows(demo, trials, together=True) == alone


def test_a_prompt_is_read_once_for_all_trials(demo: LoadedModel) -> None:
    lengths: list[int] = []
    trials = trials_of(demo, False)
    handle = demo.model.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        rows(demo, trials)
    finally:
        handle.remove()
    assert lengths.count(len(trials[0].prompt.input_ids)) == 1


def test_a_trial_without_memory_leaves_the_others_their_rows(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials, whole = trials_of(demo, False)[:3], engine.answer_together

    def short_of_memory(reading: Any, plans: Any, asked: Any) -> Any:
        if any(plan.budget == 40 for plan in plans):
            raise DeviceMemoryError("no room")
        return whole(reading, plans, asked)

    expected = rows(demo, trials)
    monkeypatch.setattr(engine, "answer_together", short_of_memory)
    found = rows(demo, trials, together=True)
    assert [row["error"] for row in found.values()] == [None, "no room", None]
    assert found[trials[1].id]["score"] is None
    assert [found[trials[k].id] for k in (0, 2)] == [expected[trials[k].id] for k in (0, 2)]

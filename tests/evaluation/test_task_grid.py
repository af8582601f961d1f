"""Tasks on a tiny model: rows are those of separate runs, and their statistics are counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from headprobe.compression.generation import generate
from headprobe.compression.session import compress
from headprobe.errors import DeviceMemoryError, NonFiniteError, OptionError
from headprobe.evaluation import trials
from headprobe.evaluation.published_scores import SETS, published_for
from headprobe.evaluation.summaries import CellKey
from headprobe.evaluation.task import TaskRequest, parse_tasks
from headprobe.evaluation.task_folder import TaskRowCheck
from headprobe.evaluation.task_grid import TaskGrid, TaskOptions, run_tasks
from headprobe.evaluation.task_summary import TaskSummary
from headprobe.evaluation.task_trial import MEASURED
from headprobe.evaluation.variants import check_scores_exist
from headprobe.models.loading import load_model
from headprobe.profiling.journal import Journal
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.score_file import write_score_file
from tests.compression.scores import random_scores
from tests.evaluation.task_parts import own_file, row
from tests.tiny_models import build_tiny_model

TIMES = ("ttft_s", "s_per_token", "peak_bytes", "seconds")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


def built(llama: Any, path: Path, **changes: Any) -> TaskGrid:
    own_file(path / "own.jsonl", 2, max_new_tokens=6)
    given = {"policies": ("full", "snapkv"), "budgets": (16,)} | changes
    options = TaskOptions(parse_tasks(f"jsonl:{path}/own.jsonl"), **given)
    return TaskGrid.build(llama, options, options.sets())


def rows_of(llama: Any, grid: TaskGrid, path: Path, **more: Any) -> list[dict[str, Any]]:
    with Journal.start(path, grid.describe(llama), overwrite=True) as journal:
        return run_tasks(llama, grid, journal, **more)


def timeless(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


@pytest.mark.parametrize("query_agnostic", [False, True])
def test_rows_are_those_of_separate_runs(llama: Any, tmp_path: Path, query_agnostic: bool) -> None:
    file = write_score_file(tmp_path / "r2.json", random_scores(llama.geometry))
    names = ("full", "snapkv", "h2o", "headkv-r2")
    grid = built(llama, tmp_path, policies=names, scores=(file,), budgets=(40, 16, 4096), query_agnostic=query_agnostic)
    rows = rows_of(llama, grid, tmp_path / "rows.jsonl")
    assert [(row["policy"], row["budget"]) for row in rows[:5]] == [
        ("full", None), ("snapkv", 16), ("snapkv", 40), ("snapkv", 4096), ("h2o", 16),
    ]  # fmt: skip
    check = TaskRowCheck(grid)
    for found, trial in zip(rows, grid.trials(), strict=True):
        check(found)
        prompt = trial.prompt
        cut = prompt.context_tokens if query_agnostic else None
        with compress(
            llama.model, trial.variant.policy, budget=trial.budget, scores=trial.variant.scores, slack=400
        ) as session:
            made = generate(
                session, prompt.input_ids, max_new_tokens=6, eos_token_ids=eos_token_ids(llama), context_tokens=cut
            )
        response = llama.tokenizer.decode(list(made.tokens), skip_special_tokens=True)
        assert (found["response"], found["kv_entries"]) == (response, made.kv_entries)
        read = cut or len(prompt.input_ids)
        assert found["kv_entries_asked"] == min(trial.budget or read, read) * 2 * 2
        assert found["full_kv_entries"] == read * 2 * 2
        assert found["evicts"] == (trial.budget is not None and trial.budget < read)
        assert found["context_tokens"] == cut


def test_a_budget_larger_than_the_prompt_runs_as_full_and_says_so(llama: Any, tmp_path: Path) -> None:
    grid = built(llama, tmp_path, budgets=(16, 4096))
    assert grid.remarks() == ["budget 4096: 2 of 2 prompts fit into it and run as full, nothing is evicted"]
    rows = rows_of(llama, grid, tmp_path / "rows.jsonl")
    full, _, large = rows[:3]
    assert (large["response"], large["kv_entries"], large["evicts"]) == (full["response"], full["kv_entries"], False)


def test_cut_prompts_are_counted(llama: Any, tmp_path: Path) -> None:
    own_file(tmp_path / "own.jsonl", 1)
    long = own_file(tmp_path / "long.jsonl", 1, question="Where? " * 600)
    options = TaskOptions(parse_tasks(f"jsonl:{tmp_path}/own.jsonl,jsonl:{long}"), budgets=(16,), policies=("full",))
    remark, *_ = TaskGrid.build(llama, options, options.sets()).remarks()
    assert remark.startswith("1 of 2 prompts are longer than the window: ")


def test_a_run_goes_on_where_it_stopped_and_tries_again_what_did_not_fit(
    llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid = built(llama, tmp_path)
    whole = rows_of(llama, grid, tmp_path / "whole.jsonl")
    path, works = tmp_path / "rows.jsonl", trials.answer_together

    def fails(reading: Any, plans: Any, asked: Any) -> Any:
        if any(plan.policy.name == "snapkv" for plan in plans):
            raise DeviceMemoryError("413 tokens do not fit")
        return works(reading, plans, asked)

    monkeypatch.setattr(trials, "answer_together", fails)
    broken = rows_of(llama, grid, path)
    assert [row["error"] for row in broken] == [None, "413 tokens do not fit"] * 2
    assert {broken[1][name] for name in MEASURED} == {None}
    for each in broken:
        TaskRowCheck(grid)(each)
    monkeypatch.setattr(trials, "answer_together", works)
    ran: list[str] = []
    with Journal.resume(path, grid.describe(llama), TaskRowCheck(grid)) as journal:
        rows = run_tasks(llama, grid, journal, on_trial=lambda trial, _: ran.append(trial.id))
    assert ran == [row["trial"] for row in whole if row["policy"] == "snapkv"]
    assert timeless(rows) == timeless(whole)
    assert rows_of(llama, grid, tmp_path / "none.jsonl", seconds=0.0) == []


def test_a_row_that_is_wrong_is_found(llama: Any, tmp_path: Path) -> None:
    grid = built(llama, tmp_path)
    good = rows_of(llama, grid, tmp_path / "rows.jsonl")[1]
    check = TaskRowCheck(grid)
    for change, reason in (
        ({"trial": "x"}, "the run has no such trial"), ({"score": 1.5}, "its score is 1.5, need a number from 0 to 1"),
        ({"budget": 17}, "its budget is 17, the run has 16"), ({"kv_entries": -1}, "its kv_entries is -1, need"),
        ({"response": None}, "its response is None, need a text"), ({"evicts": 1}, "its evicts is 1, need one of"),
        ({"error": "memory"}, "its response is"), ({"seconds": float("nan")}, "its seconds is nan, need a number"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=reason):
            check(good | change)


def test_nan_ends_a_run_and_names_the_trial(tmp_path: Path) -> None:
    broken = load_model(str(build_tiny_model("llama", tmp_path)), device="cpu")
    grid = built(broken, tmp_path)
    broken.model.get_parameter("model.layers.1.self_attn.v_proj.weight").data[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="before jsonl:own/1: NaN or infinity in the logits"):
        rows_of(broken, grid, tmp_path / "rows.jsonl")


def test_a_set_without_a_context_apart_cannot_be_compressed_before_its_question(llama: Any, tmp_path: Path) -> None:
    (tmp_path / "1024").mkdir()
    (tmp_path / "1024" / "vt.jsonl").write_text('{"input": "Where?", "outputs": ["x"]}\n')
    options = TaskOptions(
        parse_tasks("ruler:1024/vt"), TaskRequest(data_dir=tmp_path), policies=("full",), query_agnostic=True
    )
    with pytest.raises(OptionError, match="ruler:1024/vt has no context apart from its question"):
        TaskGrid.build(llama, options, options.sets())


def test_a_policy_without_scores_is_refused_before_the_model_is_there(tmp_path: Path) -> None:
    with pytest.raises(
        OptionError, match="no head scores in scores/, which razor needs: `headprobe score --model gpt2`"
    ):
        check_scores_exist(("full", "snapkv", "razor"), (), "gpt2")
    check_scores_exist(("full", "snapkv"), (), "gpt2")
    check_scores_exist(("razor",), (Path("a.json"),), "gpt2")
    check_scores_exist(("razor",), (), "demo")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "a.json").write_text("{}")
    check_scores_exist(("razor",), (), "gpt2")


# -- statistics -----------------------------------------------------------------------------------------------------


def made_summary() -> TaskSummary:
    return TaskSummary((
        row("t:a/1", "full", None, 0.5), row("t:a/1", "snapkv", 16, 0.25),
        row("t:b/1", "full", None, 1.0), row("t:b/1", "snapkv", 16, 1.0, evicts=False),
        row("t:b/2", "full", None, 0.0), row("t:b/2", "snapkv", 16, None),
        row("t:b/3", "full", None, 0.2), row("t:b/3", "snapkv", 16, 0.0, seconds=5.0),
    ))  # fmt: skip


def test_scores_by_set_and_their_mean_which_weighs_sets_alike() -> None:
    summary = made_summary()
    full, snapkv = (summary.cell(key) for key in summary.keys)
    assert full.score.mean == pytest.approx((0.5 + (1.0 + 0.0 + 0.2) / 3) / 2)
    assert snapkv.score.mean == pytest.approx((0.25 + (1.0 + 0.0) / 2) / 2)
    assert snapkv.minus_full.mean == pytest.approx((-0.25 + (0.0 - 0.2) / 2) / 2)  # b/2 is left out of both
    assert full.minus_full.mean == 0.0
    assert (snapkv.num_prompts, snapkv.num_errors, snapkv.num_unevicted, full.num_unevicted) == (3, 1, 1, 0)
    assert snapkv.seconds == 3.0
    alone = summary.cell(CellKey("snapkv", None, 16), "t:b")
    assert alone.score.mean == pytest.approx(0.5)
    assert alone.minus_full.mean == pytest.approx(-0.1)
    assert summary.record()["sets"] == ["t:a", "t:b"]
    assert len(summary.cells_by_set) == 4


def test_questions_on_one_text_are_drawn_together() -> None:
    rows = [row(f"t:a/{n}", "full", None, float(n % 2), cluster="one") for n in range(6)]
    assert TaskSummary(tuple(rows)).cells[0].score.low is None  # a single text says nothing about others
    apart = [row(f"t:a/{n}", "full", None, float(n % 2), cluster=str(n)) for n in range(6)]
    assert TaskSummary(tuple(apart)).cells[0].score.low is not None


def test_published_figures_belong_to_two_models_and_six_sets() -> None:
    llama3 = published_for("llama3-8b", (*SETS, "longbench:lcc"))
    mistral = published_for("./models/Mistral-7B-Instruct-v0.2", SETS)
    assert llama3 is not None
    assert mistral is not None
    assert (llama3.of("full", None), llama3.of("headkv-r2", 64), llama3.of("headkv-er", 128)) == (32.90, 29.76, 31.04)
    assert (mistral.of("pyramidkv", 1024), mistral.of("headkv-er", 64), mistral.of("h2o", 64)) == (31.54, None, None)
    assert published_for("llama3-8b", SETS[1:]) is None
    assert published_for("llama3.1-8b", SETS) is None
    assert published_for("demo", SETS) is None

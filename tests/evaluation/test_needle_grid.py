"""A needle grid on a tiny model, which answers nothing but runs as any other."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import DeviceMemoryError, NonFiniteError, OptionError, ResumeError
from headprobe.evaluation import needle_grid, trials
from headprobe.evaluation.needle_folder import RowCheck
from headprobe.evaluation.needle_grid import GridOptions, NeedleGrid, fair_order, run_grid
from headprobe.evaluation.needle_summary import GridSummary
from headprobe.evaluation.needle_trial import MEASURED, run_trials
from headprobe.evaluation.trials import Running
from headprobe.evaluation.variants import PolicyOptions
from headprobe.models.loading import load_model
from headprobe.probes.needle import Needle
from headprobe.probes.plan import TrialSpec
from headprobe.probes.prompt import Prompt
from headprobe.profiling.journal import Journal
from headprobe.profiling.scoring import eos_token_ids
from headprobe.scores.score_file import write_score_file
from headprobe.spans import Span
from tests.compression.scores import random_scores
from tests.tiny_models import build_tiny_model

TIMES = ("ttft_s", "s_per_token", "peak_bytes")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


def options(**changes: Any) -> GridOptions:
    return GridOptions(**{"policies": ("full", "snapkv"), "budgets": (16,), "lengths": (420,), "depths": 2} | changes)


def test_nan_ends_a_grid_and_names_the_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = load_model(str(build_tiny_model("llama", tmp_path)), device="cpu")
    broken.model.get_parameter("model.layers.1.self_attn.v_proj.weight").data[0, 0] = float("nan")
    grid = NeedleGrid.build(broken, options())
    first = next(grid.trials()).id
    match = f"before trial {re.escape(first)}: NaN or infinity in the logits of new token 1: .*hold NaN"
    with pytest.raises(NonFiniteError, match=match):
        run(broken, tmp_path / "a.jsonl", grid)
    monkeypatch.setattr(needle_grid, "warm_up", lambda loaded, grid, eos: None)
    with pytest.raises(NonFiniteError, match=f"^trial {re.escape(first)}: NaN or infinity in the logits"):
        run(broken, tmp_path / "b.jsonl", grid)


def run(llama: Any, path: Path, grid: NeedleGrid, **more: Any) -> list[dict[str, Any]]:
    with Journal.start(path, grid.describe(llama)) as journal:
        return run_grid(llama, grid, journal, **more)


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


# -- order ----------------------------------------------------------------------------------------------------------


def made_prompts(lengths: int, depths: int, per_cell: int) -> list[tuple[TrialSpec, Prompt]]:
    needle = Needle("n", "retrieval", "r", ("A.",), "A.", "Q?")
    found = []
    for length in range(lengths):
        for depth in range(depths):
            for nth in range(per_cell):
                spec = TrialSpec(f"{nth}@{length}@{depth}", needle, 100 + length, float(depth))
                prompt = Prompt(spec.id, "", (1,), Span(0, 1), None, Span(0, 1), Span(0, 1), (1,), 0.0)
                found.append((spec, prompt))
    return found


def test_lengths_take_turns_and_depths_are_spread() -> None:
    order = [prompt.trial_id for _, prompt in fair_order(made_prompts(2, 4, 1))]
    assert order == ["0@0@0", "0@1@0", "0@0@2", "0@1@2", "0@0@1", "0@1@1", "0@0@3", "0@1@3"]


def test_a_cells_second_needle_waits_for_all_first_ones() -> None:
    prompts = made_prompts(2, 3, 2)
    order = fair_order(prompts)
    assert Counter(p.trial_id for _, p in order) == Counter(p.trial_id for _, p in prompts)
    assert {prompt.trial_id[0] for _, prompt in order[:6]} == {"0"}


# -- what is run ----------------------------------------------------------------------------------------------------


def test_full_runs_once_a_prompt_and_every_budget_for_the_others(tmp_path: Path, llama: Any) -> None:
    grid = NeedleGrid.build(llama, options(budgets=(24, 16, 16)))
    rows = run(llama, tmp_path / "rows.jsonl", grid)
    assert (grid.trials_per_prompt, grid.num_trials) == (3, 6)
    assert [(row["policy"], row["budget"]) for row in rows] == 2 * [("full", None), ("snapkv", 16), ("snapkv", 24)]
    assert len({row["prompt"] for row in rows[:3]}) == 1


def test_a_row_tells_what_was_asked_and_what_was_held(tmp_path: Path, llama: Any) -> None:
    full, snapkv, *_ = run(llama, tmp_path / "rows.jsonl", NeedleGrid.build(llama, options()))
    per_entry = 2 * 8 * 4  # key and value, head_dim 8, float32
    assert snapkv["kv_entries"] == snapkv["kv_entries_asked"] == 16 * 2 * 2
    assert snapkv["kv_bytes_asked"] == 16 * 2 * 2 * per_entry
    room = full["kv_bytes"] - full["kv_bytes_asked"]
    assert snapkv["kv_bytes"] == snapkv["kv_bytes_asked"] + room  # both have room for the same answer
    assert full["kv_entries"] == full["prompt_tokens"] * 2 * 2
    assert snapkv["full_kv_bytes"] == full["kv_bytes_asked"] == full["kv_entries"] * per_entry
    assert snapkv["ttft_s"] > 0
    assert snapkv["s_per_token"] > 0
    assert snapkv["error"] is None
    assert (snapkv["scores"], snapkv["query_agnostic"], snapkv["context_tokens"]) == (None, False, None)


def test_a_budget_beyond_the_prompt_answers_as_the_full_cache(tmp_path: Path, llama: Any) -> None:
    rows = run(llama, tmp_path / "rows.jsonl", NeedleGrid.build(llama, options(budgets=(512,))))
    for full, snapkv in zip(rows[::2], rows[1::2], strict=True):
        assert snapkv["response"] == full["response"]
        assert snapkv["kv_entries"] == snapkv["kv_entries_asked"] == full["kv_entries"]


def test_query_agnostic_rows_are_compressed_before_the_question(tmp_path: Path, llama: Any) -> None:
    grid = NeedleGrid.build(llama, options(query_agnostic=True))
    full, snapkv, *_ = run(llama, tmp_path / "rows.jsonl", grid)
    prompt = next(p for _, p in grid.prompts if p.trial_id == full["prompt"])
    cut = full["context_tokens"]
    assert "Question" not in llama.tokenizer.decode(prompt.input_ids[:cut])
    assert llama.tokenizer.decode(prompt.input_ids[cut:]).startswith("Question:")
    assert full["query_agnostic"] is True
    assert full["kv_entries"] == full["context_tokens"] * 2 * 2
    assert snapkv["kv_entries"] == 16 * 2 * 2


def test_seeing_the_question_or_not_is_another_run(tmp_path: Path, llama: Any) -> None:
    path = tmp_path / "rows.jsonl"
    run(llama, path, NeedleGrid.build(llama, options()))
    other = NeedleGrid.build(llama, options(query_agnostic=True))
    with pytest.raises(ResumeError, match="query_agnostic: False -> True"):
        Journal.resume(path, other.describe(llama))


def test_baselines_run_beside_the_real_scores(tmp_path: Path, llama: Any) -> None:
    file = write_score_file(tmp_path / "r2.json", random_scores(llama.geometry))
    grid = NeedleGrid.build(llama, options(policies=("full", "headkv-r2"), scores=(file,), depths=1))
    rows = run(llama, tmp_path / "rows.jsonl", grid)
    assert [row["scores"] for row in rows] == [None, "real", "random", "shuffled"]
    assert {row["kv_entries"] for row in rows[1:]} == {16 * 2 * 2}


@pytest.mark.parametrize(
    ("query_agnostic", "together"),
    [
        (True, False), (False, True),
        pytest.param(False, False, marks=pytest.mark.slow), pytest.param(True, True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_a_prompt_is_read_once_and_rows_are_those_of_runs_of_their_own(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch, query_agnostic: bool, together: bool
) -> None:
    file = write_score_file(tmp_path / "r2.json", random_scores(llama.geometry))
    names = ("full", "h2o", "razor", "headkv-r2", "vatp-scissorhands")
    grid = NeedleGrid.build(
        llama,
        options(policies=names, scores=(file,), budgets=(16, 40, 512), depths=1, query_agnostic=query_agnostic),
    )
    monkeypatch.setattr(needle_grid, "warm_up", lambda loaded, grid, eos: None)
    running = Running(frozenset(eos_token_ids(llama)))
    alone = [row for trial in grid.trials() for _, row in run_trials(llama, [trial], running)]
    passes: list[int] = []
    hook = llama.model.register_forward_pre_hook(
        lambda _, args, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    with Journal.start(tmp_path / "rows.jsonl", grid.describe(llama)) as journal:
        rows = run_grid(llama, grid, journal, together=together)
    hook.remove()
    RowCheck(grid)(rows[0])
    assert timeless(rows) == timeless(alone)
    read = rows[0]["context_tokens"] or rows[0]["prompt_tokens"]
    assert passes.count(read) == 1
    assert max(passes) == read
    batched = [row["s_per_token"] is None for row in rows]
    assert any(batched) if together else not any(batched)


def test_trials_decoded_together_are_named_one_by_one_where_numbers_break(tmp_path: Path) -> None:
    broken = load_model(str(build_tiny_model("llama", tmp_path)), device="cpu")
    broken.model.get_parameter("model.layers.1.self_attn.v_proj.weight").data[0, 0] = float("nan")
    trials = list(NeedleGrid.build(broken, options(budgets=(16, 24), depths=1)).trials())
    with pytest.raises(NonFiniteError, match=f"^trial {re.escape(trials[1].id)}: NaN or infinity in the logits"):
        list(run_trials(broken, trials[1:], Running(together=True)))


# -- stopping and going on ------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_ends_as_one_that_was_not_stopped(tmp_path: Path, llama: Any) -> None:
    grid = NeedleGrid.build(llama, options())
    whole = run(llama, tmp_path / "whole.jsonl", grid)
    path, seen = tmp_path / "killed.jsonl", []

    def stop(trial: Any, row: dict[str, Any]) -> None:
        seen.append(row)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(llama, path, grid, on_trial=stop)
    path.write_bytes(path.read_bytes() + b'{"trial": "cut sho')
    with Journal.resume(path, grid.describe(llama)) as journal:
        rows = run_grid(llama, grid, journal, on_trial=lambda trial, row: seen.append(row))
    assert timeless(rows) == timeless(whole)
    assert timeless(seen) == timeless(whole)


def test_no_prompt_is_begun_when_the_time_is_up(tmp_path: Path, llama: Any) -> None:
    assert run(llama, tmp_path / "rows.jsonl", NeedleGrid.build(llama, options()), seconds=0.0) == []


@pytest.mark.parametrize("together", [False, True])
def test_what_does_not_fit_is_null_and_tried_again(
    tmp_path: Path, llama: Any, monkeypatch: pytest.MonkeyPatch, together: bool
) -> None:
    grid = NeedleGrid.build(llama, options(depths=1))
    path, works = tmp_path / "rows.jsonl", trials.answer_together

    def fails(reading: Any, plans: Any, asked: Any) -> Any:
        if any(plan.policy.name == "snapkv" for plan in plans):
            raise DeviceMemoryError("413 tokens do not fit")
        return works(reading, plans, asked)

    monkeypatch.setattr(trials, "answer_together", fails)
    full, snapkv = run(llama, path, grid, together=together)
    assert full["error"] is None
    assert snapkv["error"] == "413 tokens do not fit"
    assert {snapkv[name] for name in MEASURED} == {None}
    monkeypatch.setattr(trials, "answer_together", works)
    with Journal.resume(path, grid.describe(llama)) as journal:
        assert [row["error"] for row in run_grid(llama, grid, journal)] == [None, None]


# -- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_be_is_refused_before_anything_runs(llama: Any) -> None:
    with pytest.raises(OptionError, match="snapkv: a budget of 4 entries per KV head is below the 8"):
        NeedleGrid.build(llama, options(budgets=(16, 4)))
    with pytest.raises(OptionError, match="a budget of 0 entries per KV head is too small"):
        options(budgets=(0,))
    with pytest.raises(OptionError, match="no budget is given"):
        NeedleGrid.build(llama, options(budgets=()))
    with pytest.raises(OptionError, match="no baseline is called 'worst'"):
        options(baselines=("worst",))
    with pytest.raises(OptionError, match="none of full, snapkv has a beta"):
        NeedleGrid.build(llama, options(policy_options=PolicyOptions(beta=1.5)))


# -- quantized entries ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [False, True])
def test_every_variant_runs_once_for_each_number_format_and_the_full_cache_as_it_is_comes_first(
    tmp_path: Path, llama: Any, together: bool
) -> None:
    grid = NeedleGrid.build(llama, options(kv_cache_dtypes=("int8", "int4"), depths=1))
    assert [variant.name for variant in grid.variants] == [
        "full",
        "full int8",
        "full int4",
        "snapkv int8",
        "snapkv int4",
    ]
    rows = run(llama, tmp_path / "rows.jsonl", grid, together=together)
    assert [row["trial"].split("|", 1)[1] for row in rows] == [
        "full|-", "full int8|-", "full int4|-", "snapkv int8|16", "snapkv int4|16",
    ]  # fmt: skip
    full, full8, full4, snap8, snap4 = rows
    assert "kv_cache_dtype" not in full
    assert [row["kv_cache_dtype"] for row in rows[1:]] == ["int8", "int4", "int8", "int4"]
    entry = {"int8": 2 * (8 + 2), "int4": 2 * (4 + 4)}  # codes and scales of a key and a value of width 8
    for row in rows[1:]:
        assert row["kv_bytes_asked"] == row["kv_entries_asked"] * entry[row["kv_cache_dtype"]]
        assert row["kv_bytes"] * (2 * 8 * 4) == full["kv_bytes"] * entry[row["kv_cache_dtype"]] or row in (snap8, snap4)
        assert row["full_kv_bytes"] == full["full_kv_bytes"]
    check = RowCheck(grid)
    for row in rows:
        check(row)
    with pytest.raises(ValueError, match="its kv_cache_dtype is 'int4', the grid has 'int8'"):
        check(full8 | {"kv_cache_dtype": "int4"})
    cells = GridSummary(tuple(rows)).cells
    assert [cell.key.name for cell in cells] == [variant.name for variant in grid.variants]
    assert full4["kv_bytes"] < full8["kv_bytes"] < full["kv_bytes"]


def test_another_number_format_is_another_run(tmp_path: Path, llama: Any) -> None:
    described = [
        NeedleGrid.build(llama, options(kv_cache_dtypes=held)).describe(llama) for held in (("auto",), ("int8",))
    ]
    assert described[0] != described[1]
    assert described[0] == NeedleGrid.build(llama, options()).describe(llama)


def test_baselines_are_drawn_alike_for_every_number_format(tmp_path: Path, llama: Any) -> None:
    file = write_score_file(tmp_path / "r2.json", random_scores(llama.geometry))
    given = {"policies": ("full", "headkv-r2"), "scores": (file,), "baselines": ("random",)}
    grid = NeedleGrid.build(llama, options(kv_cache_dtypes=("auto", "int8"), **given))
    drawn = {variant.name: variant.scores_for("trial", 0, llama.geometry) for variant in grid.variants}
    first, second = drawn["headkv-r2 (random)"], drawn["headkv-r2 int8 (random)"]
    assert first is not None
    assert second is not None
    assert (first.mean == second.mean).all()

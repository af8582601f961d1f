"""`headprobe tune` from the outside: on the bundled model, and with made-up answers where only the choice counts.

The answers of `stand_in` are made up: whether the model is right goes by the budget and the prompt's number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headprobe.evaluation import task_grid
from headprobe.evaluation.task_prompts import TaskPrompt
from headprobe.evaluation.task_trial import TaskTrial
from headprobe.evaluation.trials import Row, Running
from headprobe.evaluation.tuning import search as searching
from headprobe.evaluation.tuning.search import split
from tests.conftest import CliResult

Cli = Callable[..., CliResult]
SEARCH = ["tune", "--task", "jsonl:my.jsonl", "--policies", "snapkv,headkv-r2", "--budgets", "8,16,32,64", "-o", "out"]


def write_task(path: Path, number: int = 24, *, poisoned: set[int] | frozenset[int] = frozenset()) -> None:
    lines = []
    for n in range(number):
        text = f"This is text number {n}. " + "Nobody knows what stands behind the hill. " * 8
        answer = "poison" if n in poisoned else f"answer{n}"
        lines.append(json.dumps({"context": text, "question": "What is the answer?", "answers": [answer]}))
    path.write_text("\n".join(lines) + "\n")


def number_of(loaded: Any, prompt: TaskPrompt) -> int:
    found = re.search(r"text number (\d+)", loaded.tokenizer.decode(list(prompt.input_ids)))
    assert found is not None
    return int(found[1])


class StandIn:
    """In place of `answers_of`: right where the budget is at least 32, and at 16 for all but every sixth text."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, str, int | None]] = []
        self.stop_after: int | None = None
        self.is_right = lambda n, policy, budget: budget is None or budget >= 32 or (budget == 16 and n % 6 != 0)

    def __call__(self, loaded: Any, trials: Sequence[TaskTrial], running: Running) -> Iterator[tuple[TaskTrial, Row]]:
        for trial in trials:
            if self.stop_after is not None and len(self.ran) >= self.stop_after:
                raise KeyboardInterrupt
            n, budget = number_of(loaded, trial.prompt), trial.budget
            self.ran.append((n, trial.variant.name, budget))
            right = self.is_right(n, trial.variant.name, budget)
            response = f"answer{n}" if right else "nothing"
            tokens = len(trial.prompt.input_ids)
            held = tokens if budget is None else budget
            yield trial, trial.head() | {
                "response": response, "score": trial.prompt.score(response), "new_tokens": 3,
                "evicts": budget is not None and budget < tokens, "kv_entries": held, "kv_entries_asked": held,
                "full_kv_entries": tokens, "kv_bytes": 8 * held, "full_kv_bytes": 8 * tokens, "peak_bytes": None,
                "ttft_s": 0.1, "s_per_token": None, "seconds": 0.1, "kernel": "torch", "error": None,
            }  # fmt: skip


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    made = StandIn()

    def generator(*given: Any) -> Iterator[tuple[TaskTrial, Row]]:
        yield from made(*given)

    monkeypatch.setattr(task_grid, "answers_of", generator)
    monkeypatch.setattr(task_grid, "_warm_up", lambda loaded, prompt, running: None)
    return made


def summary(done: CliResult) -> dict[str, Any]:
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert found.pop("stages")["total"] > 0
    return found


def sides(ran: list[tuple[int, str, int | None]]) -> tuple[set[int], set[int]]:
    """Texts for the choice, which ran under every candidate, and those held out."""
    under: dict[int, set[tuple[str, int | None]]] = {}
    for n, name, budget in ran:
        under.setdefault(n, set()).add((name, budget))
    most = max(map(len, under.values()))
    choice = {n for n, pairs in under.items() if len(pairs) == most}
    return choice, set(under) - choice


# -- choice and proof -----------------------------------------------------------------------------------------------


def test_the_smallest_cache_that_keeps_enough_is_chosen_and_proved(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    record = summary(cli(*SEARCH, "--keep", "0.9", "--json"))
    assert (record["chosen"]["label"], record["chosen"]["budget"]) == ("snapkv", 32)  # as small as headkv-r2, and first
    assert record["split"] == {side: {"prompts": 12, "clusters": 12} for side in ("calibration", "held_out")}
    assert (record["held_out"]["share"], record["verdict"]) == (1.0, "cannot tell")
    assert "29 clusters held out would prove it" in record["reason"]
    assert record["held_out_bytes"] == 8 * 32
    assert json.loads(Path("out/policy.json").read_text())["budget"] == 32
    order = [(c["label"], c["budget"]) for c in record["candidates"]]
    assert order == [(name, budget) for budget in (8, 16, 32, 64) for name in ("snapkv", "headkv-r2")]


def test_enough_prompts_prove_it(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"), 58)
    done = cli(*SEARCH, "--keep", "0.9")
    assert done.code == 0, done.err
    assert "held out, 90 % wanted: KEPT. It keeps 100 % of the full score, with 95 % confidence at least" in done.out
    assert "on 29 prompts in 29 clusters\n" in done.out


def test_held_out_prompts_run_last_and_under_two_caches_only(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    summary(cli(*SEARCH, "--keep", "0.9", "--json"))
    choice, held_out = sides(stand_in.ran)
    assert (len(choice), len(held_out)) == (12, 12)
    first = next(place for place, (n, _, _) in enumerate(stand_in.ran) if n in held_out)
    assert all(n in held_out for n, _, _ in stand_in.ran[first:])
    assert {(name, budget) for n, name, budget in stand_in.ran if n in held_out} == {("full", None), ("snapkv", 32)}


def test_the_choice_is_blind_to_the_answers_held_out(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    before = summary(cli(*SEARCH, "--keep", "0.9", "--json"))
    _, held_out = sides(stand_in.ran)
    write_task(Path("my.jsonl"), poisoned=held_out)
    after = summary(cli(*SEARCH, "--keep", "0.9", "--json", "--overwrite"))
    assert after["chosen"] == before["chosen"]
    assert after["candidates"] == before["candidates"]
    assert after["held_out"] is None  # so the poison was there
    assert "the full cache scores 0 on all 12 prompts" in after["reason"]


def test_poison_on_the_other_side_changes_the_choice(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    summary(cli(*SEARCH, "--keep", "0.9", "--json"))
    choice, _ = sides(stand_in.ran)
    write_task(Path("my.jsonl"), poisoned=choice)
    done = cli(*SEARCH, "--keep", "0.9", "--overwrite")
    assert (done.code, done.out) == (6, "")
    assert "error: the model answers nothing here: the full cache scores 0 on all 12 prompts" in done.err


def test_another_share_is_chosen_from_the_same_rows(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    summary(cli(*SEARCH, "--keep", "0.9", "--json"))
    count = len(stand_in.ran)
    record = summary(cli(*SEARCH, "--keep", "0.5", "--json", "--resume"))
    assert (record["chosen"]["label"], record["chosen"]["budget"]) == ("snapkv", 16)
    assert all(budget == 16 for _, _, budget in stand_in.ran[count:])  # the new choice on the held-out prompts


def test_nothing_is_chosen_where_nothing_keeps_enough(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    stand_in.is_right = lambda n, policy, budget: budget is None or n % 2 == 0
    done = cli(*SEARCH, "--keep", "0.9")
    assert done.code == 0
    assert "caches keeps 90 % of the full score with 95 % confidence; nearest is" in done.out
    assert not Path("out/policy.json").exists()
    assert sides(stand_in.ran)[1] == set()


def test_an_interrupted_search_goes_on_and_ends_alike(cli: Cli, stand_in: StandIn) -> None:
    write_task(Path("my.jsonl"))
    whole = summary(cli(*SEARCH, "--keep", "0.9", "--json"))
    Path("out").rename("first")
    total, stand_in.ran = len(stand_in.ran), []
    for stop in (7, total - 5):
        stand_in.stop_after = stop
        done = cli(*SEARCH, "--keep", "0.9", "--json", *(["--resume"] if stop > 7 else []))
        assert done.code == 130
        assert "the same command with --resume continues" in done.err
    stand_in.stop_after = None
    assert summary(cli(*SEARCH, "--keep", "0.9", "--json", "--resume")) == whole
    assert len(stand_in.ran) == total  # no trial ran twice
    assert cli(*SEARCH).code == 10


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--keep", "0"], 2, "--keep is 0, need a share of the score: more than 0 and at most 1"),
        (["--keep", "1.2"], 2, "--keep is 1.2"),
        (["--keep", "nan"], 2, "--keep is nan"),
        (["--calibration", "1"], 2, "--calibration is 1, need a share between 0 and 1"),
        (["--task", "jsonl:none.jsonl"], 3, "none.jsonl"),
        (["--task", "riddles"], 2, "riddles"),
        (["--policies", "full"], 2, "there is nothing to search: --policies names none that evicts"),
        (["--policies", "best"], 2, "unknown policy 'best'"),
        (["--policies", "h2o", "--windows", "2"], 2, "none of h2o has a window (given: 2)"),
        (["--windows", "2,x"], 2, "--windows: 'x' is not a whole number"),
        (["--pools", "4"], 2, "pool is 4, need an odd number"),
        (["--betas", "1.2,nan"], 2, "--betas: 'nan' is not a number"),
        (["--betas", "0.5"], 2, "beta is 0.5, need more than 1"),
        (["--budgets", "ten"], 2, "budget 'ten' is not a number of entries"),
        (["--limit", "0"], 2, "--limit is 0, need at least 1"),
    ],
)
def test_bad_input_is_one_line_before_a_model_is_loaded(
    cli: Cli, options: list[str], code: int, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "headprobe.commands.tune.load_model", lambda name, *, device, dtype: pytest.fail("a model was loaded")
    )
    write_task(Path("my.jsonl"))
    done = cli(*SEARCH, *options)
    assert (done.code, done.err.count("\n")) == (code, 1)
    assert reason in done.err
    assert not Path("out").exists()


def test_too_few_prompts_and_windows_beyond_all_budgets_are_one_line(cli: Cli) -> None:
    write_task(Path("my.jsonl"), 6)
    done = cli(*SEARCH)
    assert (done.code, done.err.count("\n")) == (5, 1)
    assert "6 prompts in 6 clusters are too few" in done.err
    done = cli(*SEARCH, "--windows", "70")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "window=70" in done.err


# -- on the bundled model -------------------------------------------------------------------------------------------


def test_a_search_on_the_bundled_model_gives_a_file_that_other_commands_take(cli: Cli) -> None:
    search = ["tune", "--task", "needles", "--lengths", "256", "--policies", "headkv-r2", "--budgets", "1,64"]
    record = summary(cli(*search, "--windows", "2,96", "--keep", "0.5", "-o", "out", "--json"))
    assert [(c["label"], c["budget"]) for c in record["candidates"]] == [("headkv-r2 window=2", 64)]
    assert any("left out, since the budget is below the window" in remark for remark in record["remarks"])
    assert (record["held_out"]["full_score"], record["chosen"]["budget"]) == (1.0, 64)
    assert {file.name for file in Path("out").iterdir()} == {
        "rows.jsonl", "summary.json", "policy.json", "demo--r2.json",
    }  # fmt: skip
    used = json.loads(
        cli("compress", "--policy-file", "out/policy.json", "--length", "256", "--max-new-tokens", "2", "--json").out
    )
    assert (used["policy"], used["budget"], used["scores"]) == ("headkv-r2", 64, "out/demo--r2.json")
    for task in ("needles", "ruler:niah_single_1"):
        done = cli("eval", task, "--policy-file", "out/policy.json", "--lengths", "256", "--dry-run", "--json")
        assert done.code == 0, done.err
        assert (json.loads(done.out)["policies"][:2], json.loads(done.out)["budgets"]) == (["full", "headkv-r2"], [64])


@pytest.mark.slow
def test_on_the_bundled_model_too_the_choice_is_blind_to_the_answers_held_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = ["tune", "--task", "needles", "--lengths", "256", "--policies", "snapkv,headkv-r2", "--budgets", "24,64"]
    before = summary(cli(*search, "--keep", "0.5", "-o", "before", "--json"))
    whole = searching.prompts_of

    def poisoned(*given: Any, **more: Any) -> tuple[TaskPrompt, ...]:
        found = whole(*given, **more)
        held_out = {prompt.trial_id for prompt in split(found, 0.5, 0)[1]}
        return tuple(replace(p, answers=("poison",)) if p.trial_id in held_out else p for p in found)

    monkeypatch.setattr(searching, "prompts_of", poisoned)
    after = summary(cli(*search, "--keep", "0.5", "-o", "after", "--json"))
    assert before["chosen"] is not None
    assert after["chosen"] == before["chosen"]
    assert after["candidates"] == before["candidates"]
    assert (before["held_out"]["full_score"], after["held_out"]) == (1.0, None)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["compress"], ["--budget", "8"]),
        (["compress"], ["--policy", "snapkv"]),
        (["compress"], ["--value-aware"]),
        (["eval", "needles"], ["--policies", "snapkv"]),
        (["eval", "needles"], ["--window", "2"]),
        (["eval", "ruler"], ["--budgets", "8"]),
        (["eval", "ruler"], ["--gqa", "max"]),
    ],
)
def test_what_a_policy_file_decides_is_not_given_beside_it(cli: Cli, command: list[str], option: list[str]) -> None:
    done = cli(*command, "--policy-file", "policy.json", *option)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert f"{option[0]} is given, and --policy-file policy.json decides it too" in done.err


def test_a_policy_file_that_is_not_there_is_one_line(cli: Cli) -> None:
    done = cli("compress", "--policy-file", "policy.json")
    assert (done.code, done.err) == (3, "headprobe: error: policy.json: No such file or directory\n")

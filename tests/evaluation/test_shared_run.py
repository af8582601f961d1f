"""Evaluations in parts: rows in files of their own, which become the run of one process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import headprobe.profiling.journal as journal_module
from headprobe.errors import ResumeError
from headprobe.evaluation.shares import Asking, PromptWork, Share, own_trials, run_share
from headprobe.profiling.journal import Journal, written_so_far
from headprobe.profiling.journal_file import open_locked
from headprobe.profiling.shards import Shard, clear_journals, drop_collected, has_run, trial_costs
from tests.conftest import CliResult
from tests.evaluation.shared_parts import FILES, NEEDLES, TASK, bare, rows

RunCli = Callable[..., CliResult]


@pytest.mark.parametrize(
    "command",
    [NEEDLES, TASK, pytest.param((*NEEDLES, "--together"), marks=pytest.mark.slow)],
    ids=["needles", "task", "together"],
)
def test_parts_collected_give_the_run_of_one_process(tmp_path: Path, cli: RunCli, command: tuple[str, ...]) -> None:
    name = FILES.get(command, "trials.jsonl")
    assert cli(*command, "-o", "one").code == 0
    for part in (2, 1, 3):
        done = cli(*command, "-o", "parts", "--shard", f"{part}/3")
        assert done.code == 0, done.err
        assert f"part {part}/3: " in done.out
        assert f"written to parts/{Path(name).stem}.shard-{part}-of-3.jsonl" in done.out
        assert not (tmp_path / "parts" / "summary.json").exists()
    assert cli(*command, "-o", "parts", "--resume", "--log-json", "log.jsonl").code == 0
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert "trial" not in events
    assert rows(tmp_path / "parts" / name) == rows(tmp_path / "one" / name)
    one, other = (json.loads((tmp_path / folder / "summary.json").read_text()) for folder in ("one", "parts"))
    assert bare(one) == bare(other)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == sorted(
        p.name for p in (tmp_path / "one").iterdir()
    )


def test_a_part_says_as_json_what_it_did(cli: RunCli) -> None:
    done = cli(*NEEDLES, "-o", "e", "--shard", "1/2", "--json")
    path = "e/trials.shard-1-of-2.jsonl"
    assert json.loads(done.out) == {"shard": "1/2", "rows": path, "num_trials": 4, "num_trials_of_plan": 8}
    assert "--resume and without --shard writes the summary" in done.err


def test_a_missing_part_is_run_by_the_one_that_collects_in_the_usual_order(tmp_path: Path, cli: RunCli) -> None:
    assert cli(*NEEDLES, "-o", "one").code == 0
    assert cli(*NEEDLES, "-o", "e", "--shard", "2/2").code == 0
    assert cli(*NEEDLES, "-o", "e", "--resume").code == 0
    assert rows(tmp_path / "e" / "trials.jsonl") == rows(tmp_path / "one" / "trials.jsonl")


def test_parts_are_not_run_over(tmp_path: Path, cli: RunCli) -> None:
    assert cli(*NEEDLES, "-o", "e", "--shard", "1/2").code == 0
    done = cli(*NEEDLES, "-o", "e")
    assert done.code == 10
    assert "e/trials.shard-1-of-2.jsonl holds a part of a run: collect it with --resume" in done.err
    done = cli(*NEEDLES, "-o", "e", "--shard", "1/2")
    assert done.code == 10
    assert "holds a part of a run" in done.err
    assert cli(*NEEDLES, "-o", "e", "--overwrite").code == 0
    assert list((tmp_path / "e").glob("*.shard-*")) == []


def test_a_part_of_another_plan_is_not_collected(cli: RunCli) -> None:
    assert cli(*NEEDLES, "-o", "e", "--shard", "1/2", "--seed", "1").code == 0
    done = cli(*NEEDLES, "-o", "e", "--resume")
    assert done.code == 9
    assert "e/trials.shard-1-of-2.jsonl was written for another plan, which differs in plan.seed" in done.err


@pytest.mark.parametrize("more", [("--resume",), ("--overwrite",)])
def test_a_part_that_is_being_written_is_neither_collected_nor_removed(
    tmp_path: Path, cli: RunCli, more: tuple[str, ...]
) -> None:
    assert cli(*NEEDLES, "-o", "e", "--shard", "1/2").code == 0
    path = tmp_path / "e" / "trials.shard-1-of-2.jsonl"
    plan = json.loads(path.read_text().splitlines()[0])["plan"]
    with Journal.resume(path, plan):
        done = cli(*NEEDLES, "-o", "e", *more)
        assert done.code == 9
        assert "another process is writing e/trials.shard-1-of-2.jsonl" in done.err
    assert path.exists()


@pytest.mark.parametrize(
    "command", [NEEDLES, ("score", *NEEDLES[2:6], "--needles-per-cell", "1")], ids=["eval", "score"]
)
def test_a_part_takes_the_lock_of_no_other_part(
    tmp_path: Path, cli: RunCli, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    command = (*command, "-o", "e" if command[0] == "eval" else "e/a.json")
    (tmp_path / "e").mkdir()
    assert cli(*command, "--shard", "2/2").code == 0
    (other,) = (tmp_path / "e").glob("*.shard-2-of-2.*")
    with other.open("ab") as file:
        file.write(b'{"trial": "in the ma')  # that another process is about to write
    before, taken = other.read_bytes(), []

    def spied(path: Path) -> tuple[int, bytes]:
        taken.append(path.name)
        return open_locked(path)

    monkeypatch.setattr(journal_module, "open_locked", spied)
    done = cli(*command, "--shard", "1/2", "--resume")
    assert done.code == 0, done.err
    assert set(taken) == {other.name.replace("2-of-2", "1-of-2")}
    assert other.read_bytes() == before
    assert "damaged" not in done.err


def test_what_is_written_so_far_may_be_nothing_yet(tmp_path: Path) -> None:
    path, plan = tmp_path / "a.journal", {"seed": 1}
    assert written_so_far(path, plan, lambda _: None) == []
    path.write_bytes(b'{"schema":"headprobe-jou')
    assert written_so_far(path, plan, lambda _: None) == []
    with Journal.resume(path, plan) as journal:
        journal.add({"trial": "1"})
        assert written_so_far(path, plan, lambda _: None) == [{"trial": "1"}]
    with pytest.raises(ResumeError, match="another plan, which differs in seed: 1 -> 2"):
        written_so_far(path, {"seed": 2}, lambda _: None)


@pytest.mark.parametrize("written", ["0/2", "3/2", "1", "a/b"])
def test_what_is_no_part_is_refused_before_the_model_loads(cli: RunCli, written: str) -> None:
    assert cli(*NEEDLES, "--shard", written, "--model", "/nowhere").code == 2


# -- shares -----------------------------------------------------------------------------------------------------------


class Toy:
    """A trial of one of two variants."""

    def __init__(self, prompt: int, variant: str) -> None:
        self.id, self.variant, self.budget = f"{prompt}|{variant}", variant, None


def works(tokens: list[int]) -> list[PromptWork[Any]]:
    def trials(number: int) -> list[Toy]:
        return [Toy(number, "full"), Toy(number, "snapkv")]

    return [PromptWork(count, lambda n=number: trials(n)) for number, count in enumerate(tokens)]  # type: ignore[misc]


def asking(asked: list[list[str]]) -> Asking[Any]:
    def answers(trials: list[Any]) -> Any:
        asked.append([trial.id for trial in trials])
        for trial in trials:
            yield trial, {"trial": trial.id, "error": None}

    return Asking(answers, lambda: None)


def test_prompts_are_dealt_out_by_cost_and_stay_together() -> None:
    parts = [own_trials(works([100, 8000, 100, 100]), Share(Shard(k, 2))) for k in (1, 2)]
    assert [[trial.id for trial in part] for part in parts] == [
        ["1|full", "1|snapkv"],
        ["0|full", "0|snapkv", "2|full", "2|snapkv", "3|full", "3|snapkv"],
    ]
    assert trial_costs([4096]) == [4096 + 2048]


def test_rows_of_others_are_put_where_one_process_would_have_written_them(tmp_path: Path) -> None:
    asked: list[list[str]] = []
    elsewhere = {trial: {"trial": trial, "error": None} for trial in ("2|snapkv", "2|full", "0|full")}
    with Journal.start(tmp_path / "a.jsonl", {}) as journal:
        run_share(works([9, 9, 9]), journal, asking(asked), share=Share(None, elsewhere))
        assert list(journal.records) == ["0|full", "0|snapkv", "1|full", "1|snapkv", "2|snapkv", "2|full"]
    assert asked == [["0|snapkv"], ["1|full", "1|snapkv"]]


def test_rows_of_others_are_kept_when_the_time_is_over(tmp_path: Path) -> None:
    elsewhere = {"1|full": {"trial": "1|full", "error": None}}
    with Journal.start(tmp_path / "a.jsonl", {}) as journal:
        run_share(works([9, 9]), journal, asking([]), share=Share(None, elsewhere), seconds=0.0)
        assert list(journal.records) == ["1|full"]


def test_a_trial_that_did_not_fit_is_tried_again_by_whoever_collects(tmp_path: Path) -> None:
    assert not has_run({"trial": "a", "error": "out of memory"})
    assert not has_run({"trial": "a", "skipped": "out of memory"})
    assert has_run({"trial": "a", "error": None})
    asked: list[list[str]] = []
    with Journal.start(tmp_path / "a.jsonl", {}) as journal:
        journal.add({"trial": "0|full", "error": "out of memory"})
        run_share(works([9]), journal, asking(asked), share=Share(None, {"0|full": {"trial": "0|full", "error": None}}))
        assert journal.records["0|full"]["error"] is None
    assert asked == [["0|snapkv"]]


def test_journals_of_parts_are_removed_together_or_not_at_all(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl")]
    for path in paths[:2]:
        Journal.start(path, {}).__exit__(None, None, None)
    paths[2].write_text("my notes")
    with pytest.raises(Exception, match=r"c.jsonl exists but is not a journal"):
        clear_journals(paths)
    assert [path.exists() for path in paths] == [True, True, True]
    with Journal.resume(paths[0], {}):
        drop_collected(paths[:2])
        assert [path.exists() for path in paths] == [True, False, True]

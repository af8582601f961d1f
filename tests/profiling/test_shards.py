"""Parts of a plan in journals of their own, and the file that they become: that of one process."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import OptionError, OutputExistsError, ResumeError
from headprobe.models.loading import load_model
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.journal import Journal
from headprobe.profiling.ranks import Ranks
from headprobe.profiling.run import score
from headprobe.profiling.shards import Shard, shard_journals
from tests.conftest import ROOT
from tests.fork_server import ForkServer
from tests.torchrun import forked_ranks, torchrun

SMALL: dict[str, Any] = {"lengths": (160, 200), "depths": 3, "needles_per_cell": 1}
SCORE = ("score", "--lengths", "160,200", "--depths", "3", "--needles-per-cell", "1")


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu", dtype="float32")


def test_every_trial_is_dealt_to_one_shard_and_costs_are_even() -> None:
    costs = [random.Random(1).uniform(1, 100) for _ in range(97)]
    for count in (1, 2, 7, 97, 120):
        dealt = [Shard(k, count).dealt(costs) for k in range(1, count + 1)]
        assert sorted(trial for part in dealt for trial in part) == list(range(97))
        loads = [sum(costs[trial] for trial in part) for part in dealt]
        assert max(loads) - min(loads) <= max(costs)


@pytest.mark.parametrize("written", ["", "3", "0/4", "5/4", "1/0", "-1/4", "1/4/2", "a/b", "1/1000000", "٣/٤", "1 / 4"])
def test_what_is_no_shard_is_refused(written: str) -> None:
    with pytest.raises(OptionError, match=re.escape("K/N")):
        Shard.parse(written)


def test_shards_collected_give_the_file_of_one_process(tmp_path: Path, demo: Any) -> None:
    whole = score(demo, ScoreOptions(**SMALL), output=tmp_path / "whole.json").scores["r2"]
    for part in (2, 3, 1):
        made = score(demo, ScoreOptions(**SMALL, shard=Shard(part, 3)), output=tmp_path / "parts.json")
        assert made.scores == {}
        assert len(made.records) == 2
        assert not (tmp_path / "parts.json").exists()
    ran: list[str] = []
    collected = score(
        demo,
        ScoreOptions(**SMALL),
        output=tmp_path / "parts.json",
        resume=True,
        on_trial=lambda r: ran.append(r["trial"]),
    )
    assert ran == []
    assert collected.scores["r2"].trials == whole.trials
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("whole.json", "parts.json"))
    for file in (one, other):
        del file["created_at"], file["environment"]
    assert one == other
    assert [path.name for path in tmp_path.iterdir() if "journal" in path.name] == []


def test_a_missing_shard_is_run_by_the_one_that_collects(tmp_path: Path, demo: Any) -> None:
    score(demo, ScoreOptions(**SMALL, shard=Shard(1, 2)), output=tmp_path / "a.json")
    ran: list[str] = []
    score(
        demo, ScoreOptions(**SMALL), output=tmp_path / "a.json", resume=True, on_trial=lambda r: ran.append(r["trial"])
    )
    assert len(ran) == 3


def test_a_run_may_go_on_with_another_number_of_shards(tmp_path: Path, demo: Any) -> None:
    score(demo, ScoreOptions(**SMALL, shard=Shard(1, 2)), output=tmp_path / "a.json")
    ran: list[str] = []
    for part in (1, 2, 3):
        score(
            demo, ScoreOptions(**SMALL, shard=Shard(part, 3)), output=tmp_path / "a.json", resume=True,
            on_trial=lambda r: ran.append(r["trial"]),
        )  # fmt: skip
    assert len(ran) == len(set(ran)) == 3


def test_without_resume_shards_are_not_run_over(tmp_path: Path, demo: Any) -> None:
    score(demo, ScoreOptions(**SMALL, shard=Shard(1, 2)), output=tmp_path / "a.json")
    with pytest.raises(OutputExistsError, match="holds a shard's trials: collect them with --resume"):
        score(demo, ScoreOptions(**SMALL), output=tmp_path / "a.json")
    with pytest.raises(OutputExistsError, match="holds an unfinished run"):
        score(demo, ScoreOptions(**SMALL, shard=Shard(1, 2)), output=tmp_path / "a.json")
    score(demo, ScoreOptions(**SMALL), output=tmp_path / "a.json", overwrite=True)
    assert shard_journals(tmp_path / "a.journal") == []


def test_shards_of_another_plan_are_refused(tmp_path: Path, demo: Any) -> None:
    score(demo, ScoreOptions(**SMALL, seed=1, shard=Shard(1, 2)), output=tmp_path / "a.json")
    with pytest.raises(ResumeError, match="another plan, which differs in plan.seed"):
        score(demo, ScoreOptions(**SMALL), output=tmp_path / "a.json", resume=True)


def test_a_shard_that_is_still_running_is_not_collected(tmp_path: Path, demo: Any) -> None:
    score(demo, ScoreOptions(**SMALL, shard=Shard(1, 2)), output=tmp_path / "a.json")
    job = prepare(demo, ScoreOptions(**SMALL))
    path = Shard(2, 2).journal(tmp_path / "a.journal")
    hold = "import sys; from headprobe.profiling.journal import Journal; from pathlib import Path; import json\n"
    hold += (
        "with Journal.start(Path(sys.argv[1]), json.loads(sys.argv[2])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(path), json.dumps(job.description(demo))]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(ResumeError, match="another process is writing .*shard-2-of-2"):
            score(demo, ScoreOptions(**SMALL), output=tmp_path / "a.json", resume=True)
        ran: list[str] = []
        score(
            demo, ScoreOptions(**SMALL, shard=Shard(1, 3)), output=tmp_path / "a.json", resume=True,
            on_trial=lambda r: ran.append(r["trial"]),
        )  # fmt: skip
        process.communicate()


def test_until_stable_needs_all_trials() -> None:
    with pytest.raises(OptionError, match="until_stable is 3, but shard 1/2 sees only its own trials"):
        ScoreOptions(until_stable=3, shard=Shard(1, 2))


def test_a_journals_name_stays_within_what_systems_allow() -> None:
    path = Shard(12, 345).journal(Path("x" * 247 + ".journal"))
    assert len(path.name) <= 255
    assert path.name.endswith(".shard-12-of-345.journal")


def test_two_ranks_give_the_file_of_one_process(tmp_path: Path, demo: Any) -> None:
    score(demo, ScoreOptions(**SMALL), output=tmp_path / "one.json")
    done = torchrun(tmp_path, *SCORE, "-o", "two.json", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_trials"] == 6  # one JSON object, from rank 0
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "two.json"))
    assert one["id"] == two["id"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in {".json", ".journal"}) == [
        "one.json", "two.json"
    ]  # fmt: skip


def test_a_rank_that_fails_ends_the_run_and_resume_goes_on(tmp_path: Path, demo: Any, server: ForkServer) -> None:
    job = prepare(demo, ScoreOptions(**SMALL))
    broken = Shard(2, 2).journal(tmp_path / "two.journal")
    with Journal.start(broken, {"of": "another plan"}):
        pass
    done = forked_ranks(server, *SCORE, "-o", "two.json", "--resume")
    assert done.returncode != 0
    assert "was written for another plan" in done.stderr
    assert not (tmp_path / "two.json").exists()
    broken.unlink()
    assert forked_ranks(server, *SCORE, "-o", "two.json", "--resume", ranks=3).returncode == 0
    assert len(json.loads((tmp_path / "two.json").read_text())["trials"]) == len(job.prompts)


def test_one_process_under_torchrun_is_an_ordinary_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Ranks.of_environment() is None
    for name, value in {"TORCHELASTIC_RUN_ID": "a", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert Ranks.of_environment() is None
    monkeypatch.setenv("WORLD_SIZE", "4")
    found = Ranks.of_environment()
    assert found is not None
    assert (found.shard, found.device("cpu")) == (Shard(1, 4), "cpu")

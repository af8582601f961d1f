"""Ranks of one run that are lost, run out of memory or read other files: one line, and `--resume` goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from headprobe.errors import LostRankError, ResumeError
from headprobe.home import shipped_needle_sets
from headprobe.profiling.ranks import Ranks
from tests.fork_server import ForkServer
from tests.torchrun import forked_ranks, torchrun

SMALL = ("--lengths", "160,200", "--depths", "2", "--needles-per-cell", "1")
SCORE = ("score", *SMALL, "-o", "a.json")
NEEDLES = ("eval", "needles", *SMALL, "--budgets", "16", "--policies", "full,snapkv", "--baselines", "none", "-o", "e")


def rows(path: Path) -> list[dict[str, Any]]:
    """Header and rows without what was timed."""
    times = ("ttft_s", "s_per_token", "seconds", "peak_bytes")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in path.read_text().splitlines()]


def test_a_rank_that_is_killed_ends_the_run_and_resume_goes_on(tmp_path: Path, server: ForkServer) -> None:
    done = torchrun(tmp_path, "dies", "1", *NEEDLES, module="tests.faults.rank")
    assert done.returncode != 0
    assert not (tmp_path / "e" / "summary.json").exists()
    assert "Traceback (most recent call last)" not in done.stderr.split("torch/distributed")[0]
    lost = rows(tmp_path / "e" / "trials.shard-2-of-2.jsonl")[1:]
    assert len(lost) == 2
    done = forked_ranks(server, *NEEDLES, "--resume")
    assert done.returncode == 0, done.stderr
    assert server.run(*NEEDLES[:-1], "one") == 0, server.printed
    found, wanted = rows(tmp_path / "e" / "trials.jsonl"), rows(tmp_path / "one" / "trials.jsonl")
    assert found == wanted
    assert list((tmp_path / "e").glob("*.shard-*")) == []


def test_a_rank_without_memory_leaves_its_trials_to_the_first(tmp_path: Path, server: ForkServer) -> None:
    done = forked_ranks(server, "full", "1", *SCORE, "--log-json", "log.jsonl", module="tests.faults.rank")
    assert done.returncode == 0, done.stderr
    assert server.run(*SCORE[:-1], "one.json") == 0, server.printed
    one, two = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "a.json"))
    assert one["id"] == two["id"]
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    skipped = [line for line in events if line["event"] == "skip"]
    assert {line["rank"] for line in skipped} == {1}
    assert all(line["reason"].startswith("out of memory on cpu at ") for line in skipped)
    retried = [line for line in events if line["event"] == "retry" and line["rank"] == 1]
    assert retried[0]["prefill_chunk"] == 4096
    ran = [line["trial"] for line in events if line["event"] == "trial"]
    assert {line["trial"] for line in skipped} < set(ran)
    assert len(ran) == len(set(ran)) == 4


def test_a_needle_file_that_changes_while_ranks_begin_is_refused_by_all(tmp_path: Path, server: ForkServer) -> None:
    source = shipped_needle_sets()["reasoning"]
    shutil.copy(source, tmp_path / "needles.jsonl")
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "1.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    done = forked_ranks(server, "others", "1", *SCORE, "--needles", "needles.jsonl", module="tests.faults.rank")
    assert done.returncode != 0
    assert "rank 1 has another plan than rank 0: a file that the run reads was changed" in done.stderr
    assert list(tmp_path.glob("*.json")) == []
    assert list(tmp_path.glob("*.journal")) == []


def test_two_ranks_give_the_evaluation_of_one_process(tmp_path: Path, server: ForkServer) -> None:
    done = forked_ranks(server, *NEEDLES, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["is_complete"]  # one JSON object, from rank 0
    assert server.run(*NEEDLES[:-1], "one") == 0, server.printed
    assert rows(tmp_path / "e" / "trials.jsonl") == rows(tmp_path / "one" / "trials.jsonl")
    assert sorted(path.name for path in (tmp_path / "e").iterdir()) == [
        "grid.png", "recall.png", "summary.json", "table.md", "trials.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("call", ["wait", "agree", "gathered"])
def test_a_lost_connection_is_one_line_with_the_way_on(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("[pair.cc:547] Connection closed by peer [10.0.0.2]:3124")

    for name in ("barrier", "all_gather", "gather"):
        monkeypatch.setattr(torch.distributed, name, lost)
    ranks = Ranks(0, 2, 0)
    with pytest.raises(LostRankError, match=r"--resume continues \(\[pair.cc:547\] Connection closed by peer"):
        {"wait": ranks.wait, "agree": lambda: ranks.agree({"seed": 1}), "gathered": lambda: ranks.gathered([])}[call]()
    assert LostRankError.exit_code == 12


def test_ranks_agree_on_equal_plans_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(*others: int) -> None:
        def gather(found: list[torch.Tensor], mine: torch.Tensor) -> None:
            for place, shift in zip(found, others, strict=True):
                place.copy_(mine + shift)

        monkeypatch.setattr(torch.distributed, "all_gather", gather)

    answers(0, 0, 0)
    Ranks(2, 3, 0).agree({"b": 1, "a": {"d": 2, "c": 3}})
    answers(0, 0, 1)
    with pytest.raises(ResumeError, match="rank 2 has another plan than rank 0"):
        Ranks(0, 3, 0).agree({"seed": 1})

"""`kill -9` at random moments: nothing is lost but the trial in work, and every file is whole or not there."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from headprobe.scores.score_file import read_score_file
from tests.fork_server import ForkServer

KILLS = [2, pytest.param(100, marks=pytest.mark.slow)]
SMALL = ("--lengths", "160,200", "--depths", "2", "--needles-per-cell", "1")
SCORE = ("score", *SMALL)
NEEDLES = ("eval", "needles", *SMALL, "--budgets", "16", "--policies", "full,snapkv", "--baselines", "none")
TASK = ("eval", "ruler:vt", "--limit", "3", "--lengths", "512", "--budgets", "32", "--policies", "full,snapkv")
TUNE = (
    "tune", "--task", "needles", "--lengths", "160", "--policies", "headkv-r2", "--budgets", "32",
    "--keep", "0.1",
)  # fmt: skip


def killed(server: ForkServer, seconds: float, *arguments: str) -> bool:
    """Whether the command was killed so many seconds after its beginning, before it ended."""
    process = server.start(*arguments)
    time.sleep(seconds)
    with suppress(ProcessLookupError):  # it may have ended already
        os.kill(process, signal.SIGKILL)
    code = server.end()
    assert code in (0, -signal.SIGKILL), server.printed
    return code != 0


def timed_run(server: ForkServer, *arguments: str) -> float:
    began = time.monotonic()
    assert server.run(*arguments) == 0, server.printed
    return time.monotonic() - began


def whole_lines(path: Path) -> bytes:
    raw = path.read_bytes() if path.exists() else b""
    return raw[: raw.rfind(b"\n") + 1]


def check_lines(path: Path, before: bytes) -> None:
    """All lines that were whole before are there, and whatever was added is whole but for the last line."""
    after = whole_lines(path)
    assert after.startswith(before)
    assert all("trial" in json.loads(line) for line in after.splitlines()[1:])


@pytest.mark.parametrize("kills", KILLS)
def test_score(tmp_path: Path, server: ForkServer, kills: int) -> None:
    seconds = timed_run(server, *SCORE, "-o", "one.json")
    output, journal, dice, ends = tmp_path / "killed.json", tmp_path / "killed.journal", random.Random(kills), 0
    wanted = json.loads((tmp_path / "one.json").read_text())["id"]
    for _ in range(kills):
        before = whole_lines(journal)
        killed(server, dice.uniform(0, seconds), *SCORE, "-o", "killed.json", "--resume")
        if output.exists():
            assert json.loads(output.read_text())["id"] == wanted
            read_score_file(output)
            output.unlink()
            journal.unlink(missing_ok=True)
            ends += 1
        else:
            check_lines(journal, before)
    assert server.run(*SCORE, "-o", "killed.json", "--resume") == 0, server.printed
    assert json.loads(output.read_text())["id"] == wanted


def bare_rows(path: Path) -> list[dict[str, Any]]:
    """Header and rows without what was timed."""
    times = ("ttft_s", "s_per_token", "seconds", "peak_bytes")
    return [{k: v for k, v in json.loads(line).items() if k not in times} for line in path.read_text().splitlines()]


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize(
    ("command", "rows"), [(NEEDLES, "trials.jsonl"), (TASK, "rows.jsonl")], ids=["needles", "task"]
)
def test_eval(tmp_path: Path, server: ForkServer, kills: int, command: tuple[str, ...], rows: str) -> None:
    seconds = timed_run(server, *command, "-o", "one")
    folder, dice = tmp_path / "killed", random.Random(kills)
    for _ in range(kills):
        before = whole_lines(folder / rows)
        was_killed = killed(server, dice.uniform(0, seconds), *command, "-o", "killed", "--resume")
        check_lines(folder / rows, before)
        for summary in folder.glob("summary.json"):
            json.loads(summary.read_text())
        if not was_killed:
            assert bare_rows(folder / rows) == bare_rows(tmp_path / "one" / rows)
            shutil.rmtree(folder)
    assert server.run(*command, "-o", "killed", "--resume") == 0, server.printed
    assert bare_rows(folder / rows) == bare_rows(tmp_path / "one" / rows)
    assert (folder / "summary.json").exists()


@pytest.mark.parametrize("kills", KILLS)
def test_tune(tmp_path: Path, server: ForkServer, kills: int) -> None:
    seconds = timed_run(server, *TUNE, "-o", "one")
    folder, dice = tmp_path / "killed", random.Random(kills)
    decided = (tmp_path / "one" / "policy.json").read_bytes()
    for _ in range(kills):
        before = whole_lines(folder / "rows.jsonl")
        was_killed = killed(server, dice.uniform(0, seconds), *TUNE, "-o", "killed", "--resume")
        check_lines(folder / "rows.jsonl", before)
        for policy in folder.glob("policy.json"):  # only ever written with all rows there
            assert policy.read_bytes() == decided
            assert bare_rows(folder / "rows.jsonl") == bare_rows(tmp_path / "one" / "rows.jsonl")
        if not was_killed:
            shutil.rmtree(folder)
    assert server.run(*TUNE, "-o", "killed", "--resume") == 0, server.printed
    assert (folder / "policy.json").read_bytes() == decided
    assert bare_rows(folder / "rows.jsonl") == bare_rows(tmp_path / "one" / "rows.jsonl")


@pytest.mark.parametrize("kills", KILLS)
def test_scores_merge(tmp_path: Path, server: ForkServer, kills: int) -> None:
    for seed in ("0", "1"):
        assert server.run(*SCORE, "--seed", seed, "-o", f"part{seed}.json") == 0, server.printed
    merge = ("scores", "merge", "part0.json", "part1.json", "-o")
    seconds = timed_run(server, *merge, "one.json")
    parts = [(tmp_path / f"part{seed}.json").read_bytes() for seed in "01"]
    wanted, dice = json.loads((tmp_path / "one.json").read_text())["id"], random.Random(kills)
    for _ in range(kills):
        killed(server, dice.uniform(0, 1.2 * seconds), *merge, "both.json")
        if (tmp_path / "both.json").exists():
            assert read_score_file(tmp_path / "both.json").num_trials == 8
            assert json.loads((tmp_path / "both.json").read_text())["id"] == wanted
            (tmp_path / "both.json").unlink()
    assert server.run(*merge, "both.json") == 0, server.printed
    assert [(tmp_path / f"part{seed}.json").read_bytes() for seed in "01"] == parts


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("command", [SCORE, NEEDLES], ids=["score", "needles"])
def test_collecting_parts(tmp_path: Path, server: ForkServer, kills: int, command: tuple[str, ...]) -> None:
    """Whatever a collecting run leaves, the next one makes the same of it."""
    output, dice = "all.json" if command is SCORE else "all", random.Random(kills)
    folder = tmp_path / "parts"
    for part in ("1/2", "2/2"):
        assert server.run(*command, "-o", f"parts/{output}", "--shard", part) == 0, server.printed
    shutil.copytree(folder, tmp_path / "kept")
    seconds = timed_run(server, *command, "-o", f"parts/{output}", "--resume")
    wanted = result(folder / output)
    for _ in range(kills):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        if killed(server, dice.uniform(0, seconds), *command, "-o", f"parts/{output}", "--resume"):
            code = server.run(*command, "-o", f"parts/{output}", "--resume")
            assert code == 0 or (code == 10 and "that run is complete" in server.printed), server.printed
        assert result(folder / output) == wanted


@pytest.mark.parametrize("kills", KILLS)
@pytest.mark.parametrize("command", [SCORE, NEEDLES], ids=["score", "needles"])
def test_merging_parts(tmp_path: Path, server: ForkServer, kills: int, command: tuple[str, ...]) -> None:
    """A merge that was killed leaves whole files or none, and the next one makes the run of one process."""
    is_score, dice = command is SCORE, random.Random(kills)
    output, whole = ("all.json", "one.json") if is_score else ("all", "one")
    for arguments in (("-o", whole), *(("-o", f"parts/{output}", "--shard", part) for part in ("1/2", "2/2"))):
        assert server.run(*command, *arguments) == 0, server.printed
    folder, wanted = tmp_path / "parts", result(tmp_path / whole)
    journals = [str(path.relative_to(tmp_path)) for path in sorted(folder.rglob("*.shard-*"))]
    merge = ("scores", "merge", *journals, "-o") if is_score else ("eval", "merge")
    place = f"parts/{output}"
    shutil.copytree(folder, tmp_path / "kept")
    seconds = timed_run(server, *merge, place)
    for _ in range(kills):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "kept", folder)
        killed(server, dice.uniform(0, 1.2 * seconds), *merge, place)
        if is_score and (tmp_path / place).exists():
            assert result(tmp_path / place) == wanted
            (tmp_path / place).unlink()
        assert server.run(*merge, place) == 0, server.printed
        assert result(tmp_path / place) == wanted


def result(path: Path) -> Any:
    return bare_rows(path / "trials.jsonl") if path.is_dir() else json.loads(path.read_text())["id"]

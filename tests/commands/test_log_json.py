"""`--log-json` and `--profile`, the same for every long command."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headprobe.commands.event_log import EventLog, open_log, run_of_environment
from headprobe.stages import Stages
from tests.conftest import ROOT, CliResult
from tests.fork_server import ForkServer

RunCli = Callable[..., CliResult]
SCORE = ("score", "--lengths", "160", "--depths", "2", "--needles-per-cell", "1", "-o", "a.json")
NEEDLES = ("--lengths", "160", "--depths", "2", "--budgets", "16", "--policies", "full,snapkv", "--baselines", "none")
COMMANDS: dict[str, tuple[tuple[str, ...], str, int]] = {
    "score": (SCORE, "score", 2),
    "needles": (("eval", "needles", *NEEDLES, "-o", "e"), "needles", 4),
    "task": (("eval", "ruler:vt", "--limit", "1", "--lengths", "512", "--policies", "full", "-o", "e"), "tasks", 1),
    "formats": (("compress", "--length", "160", "--budget", "32", "--kv-cache-dtype", "auto,int8"), "compress", 2),
    "compress": (("compress", "--length", "160", "--budget", "32", "--compare", "full"), "compress", 2),
}
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")


def events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_says_what_it_does_line_by_line(tmp_path: Path, cli: RunCli, name: str) -> None:
    given, work, trials = COMMANDS[name]
    done = cli(*given, "--log-json", "log.jsonl")
    assert done.code == 0, done.err
    found = events(tmp_path / "log.jsonl")
    kinds = [line["event"] for line in found]
    assert kinds[:2] == ["begin", "plan"]
    assert kinds[-1] == "end"
    assert kinds.count("trial") == trials
    assert set(kinds) <= {"begin", "plan", "trial", "write", "end"}
    assert {line["schema"] for line in found} == {"headprobe-log/1"}
    assert len({line["run"] for line in found}) == 1
    assert {line["rank"] for line in found} == {0}
    assert all(TIME.fullmatch(line["time"]) for line in found)
    assert [line["seconds"] for line in found] == sorted(line["seconds"] for line in found)
    plan, end = found[1], found[-1]
    assert (plan["work"], plan["model"], plan["trials"], plan["done"]) == (work, "demo", trials, 0)
    assert (end["code"], end["error"]) == (0, None)
    assert {"load", "prefill", "decode", "total"} <= set(end["stages"])
    assert sum(s for n, s in end["stages"].items() if n != "total") <= end["stages"]["total"] + 0.01
    for line in found:
        if line["event"] == "trial":
            assert sum(line["stages"].values()) <= line["took"] + 0.01


def test_runs_add_to_one_log_and_each_has_an_id_of_its_own(tmp_path: Path, cli: RunCli) -> None:
    for _ in range(2):
        assert cli(*SCORE, "--overwrite", "--log-json", "log.jsonl").code == 0
    found = events(tmp_path / "log.jsonl")
    runs = [line["run"] for line in found]
    assert len(set(runs)) == 2
    assert runs == [runs[0]] * (len(runs) // 2) + [runs[-1]] * (len(runs) // 2)
    written = [line["file"] for line in found if line["event"] == "write"]
    assert written == ["a.json", "a.json"]


def test_an_error_ends_the_log_with_its_code(tmp_path: Path, cli: RunCli) -> None:
    (tmp_path / "a.json").write_text("{}")
    assert cli(*SCORE, "--log-json", "log.jsonl").code == 10
    *_, end = events(tmp_path / "log.jsonl")
    assert (end["event"], end["code"]) == ("end", 10)
    assert "a.json already exists" in end["error"]


def test_an_interrupt_ends_the_log_with_its_code(tmp_path: Path, server: ForkServer) -> None:
    given = ("score", "--lengths", "256", "--needles-per-cell", "20", "-o", "a.json", "--log-json", "log.jsonl")
    process = server.fork(*given)
    log = tmp_path / "log.jsonl"
    while process.poll() is None and not (log.exists() and b'"event":"trial"' in log.read_bytes()):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143
    *_, end = events(log)
    assert (end["event"], end["code"]) == ("end", 143)


@pytest.mark.parametrize("notes", ["my notes\n", '{"schema": "mine"}\n'])
def test_a_file_of_somebody_elses_is_not_added_to(tmp_path: Path, cli: RunCli, notes: str) -> None:
    (tmp_path / "log.jsonl").write_text(notes)
    done = cli(*SCORE, "--log-json", "log.jsonl")
    assert done.code == 10
    assert "log.jsonl exists and is no log of ours" in done.err
    assert (tmp_path / "log.jsonl").read_text() == notes
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("option", ["--log-json", "--profile"])
def test_a_log_or_profile_is_an_output_like_the_others(tmp_path: Path, cli: RunCli, option: str) -> None:
    done = cli(*SCORE, option, "./a.json")
    assert done.code == 2
    assert f"{option} a.json and the output a.json are the same file" in done.err
    (tmp_path / "folder").mkdir()
    done = cli(*SCORE, option, "folder")
    assert done.code == 10
    assert "folder" in done.err
    done = cli(*SCORE, option, "/proc/none/x")
    assert done.code == 11
    assert "cannot write /proc/none/x" in done.err


def test_a_last_line_that_a_kill_cut_short_is_ended(tmp_path: Path, cli: RunCli) -> None:
    cut = '{"schema":"headprobe-log/1","time":"2026'
    (tmp_path / "log.jsonl").write_text(cut)
    assert cli(*SCORE, "--log-json", "log.jsonl").code == 0
    first, *others = (tmp_path / "log.jsonl").read_text().splitlines()
    assert first == cut
    assert [json.loads(line)["event"] for line in others[:2]] == ["begin", "plan"]


def test_a_log_that_cannot_be_written_any_more_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    log = EventLog(tmp_path / "log.jsonl", Stages(), told.append)
    log("trial", {"trial": "one"})

    def full(descriptor: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    log("trial", {"trial": "two"})
    log("trial", {"trial": "three"})
    monkeypatch.undo()
    assert told == [f"cannot write {tmp_path / 'log.jsonl'}: No space left on device; the run goes on without it"]
    assert [line["trial"] for line in events(tmp_path / "log.jsonl")] == ["one"]


def test_processes_of_one_torchrun_share_an_id(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_of_environment()[0] != run_of_environment()[0]
    for name, value in {"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": "1", "RANK": "3"}.items():
        monkeypatch.setenv(name, value)
    assert run_of_environment() == run_of_environment()
    assert run_of_environment()[1] == 3


WRITER = """
import sys
from pathlib import Path
from headprobe.commands.event_log import EventLog
from headprobe.stages import Stages
log = EventLog(Path(sys.argv[1]), Stages(), print)
for number in range(500):
    log("trial", {"trial": sys.argv[2], "number": number, "padding": "x" * 2000})
"""


def test_a_line_that_another_process_is_writing_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader may see the first part of a line alone; no newline of ours goes into the middle of it."""
    log, whole = tmp_path / "log.jsonl", b'{"schema":"headprobe-log/1","event":"end"}\n'
    log.write_bytes(whole[:20])

    def written_meanwhile(seconds: float) -> None:
        with log.open("ab") as file:
            file.write(whole[20:])

    monkeypatch.setattr("headprobe.commands.event_log.time.sleep", written_meanwhile)
    os.close(open_log(log))
    assert log.read_bytes() == whole


def test_lines_of_several_processes_never_mix(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(log), name], env=env) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = events(log)
    for name in "abc":
        assert [line["number"] for line in found if line["trial"] == name] == list(range(500))


def test_a_profile_holds_the_first_three_trials_and_no_more(tmp_path: Path, cli: RunCli) -> None:
    done = cli(*SCORE[:-2], "--depths", "5", "-o", "a.json", "--profile", "trace.json")
    assert done.code == 0, done.err
    assert "headprobe: profile of the first 3 trials written to trace.json" in done.err
    spans = [event.get("name") for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]]
    assert spans.count("write") == 3  # a line of the journal for each trial
    assert "prefill" in spans
    assert any(str(name).startswith("aten::") for name in spans)
    again = cli(*SCORE, "--profile", "trace.json")
    assert again.code == 10
    assert "--profile: trace.json already exists" in again.err


def test_a_profile_of_fewer_trials_holds_what_there_was(tmp_path: Path, cli: RunCli) -> None:
    done = cli("compress", "--length", "160", "--budget", "32", "--profile", "trace.json")
    assert "profile of the first 1 trials written to trace.json" in done.err
    assert (tmp_path / "trace.json").stat().st_size > 1000


@pytest.mark.parametrize(
    "command", ["score", "compress", "knockout", "referee", "eval needles", "eval ruler", "tune", "bench"]
)
def test_all_long_commands_take_both_options(cli: RunCli, command: str) -> None:
    shown = cli(*command.split(), "--help").out
    assert "--log-json" in shown
    assert "--profile" in shown


def test_every_result_says_how_long_each_stage_took(tmp_path: Path, cli: RunCli) -> None:
    assert cli(*SCORE).code == 0
    assert cli("eval", "needles", *NEEDLES, "-o", "e").code == 0
    assert cli("eval", "ruler:vt", "--limit", "1", "--lengths", "512", "--policies", "full", "-o", "t").code == 0
    given = cli("compress", "--length", "160", "--budget", "32", "--json")
    written = [
        json.loads((tmp_path / "a.json").read_text())["environment"],
        json.loads((tmp_path / "e" / "summary.json").read_text()),
        json.loads((tmp_path / "t" / "summary.json").read_text()),
        json.loads(given.out),
    ]
    for record in written:
        assert {"load", "prefill", "total"} <= set(record["stages"])
        assert all(seconds >= 0 for seconds in record["stages"].values())
        assert record["stages"]["total"] >= record["stages"]["load"] > 0


ONE_PROCESS = {
    "compress": (("compress", "--length", "160", "--budget", "32"), "give --tensor-parallel, or start one"),
    "tune": (("tune", "--task", "needles", "--lengths", "160", "-o", "t"), "run all of tune: start one"),
    "bench": (("bench", "-o", "b"), "run all of bench: start one"),
    "knockout": (("knockout", "none.json", "-o", "k"), "run all of knockout: start one"),
    "referee": (("referee", "-o", "r"), "run all of referee: start one"),
}


@pytest.mark.parametrize("name", ONE_PROCESS)
def test_what_cannot_be_dealt_out_is_refused_under_torchrun_before_a_file_is_made(
    tmp_path: Path, cli: RunCli, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    given, way = ONE_PROCESS[name]
    for variable, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(variable, value)
    done = cli(*given, "--log-json", "log.jsonl")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "torchrun started 2 processes" in done.err
    assert way in done.err
    assert list(tmp_path.iterdir()) == []


def test_the_page_names_every_command_that_can_be_watched() -> None:
    sources = (ROOT / "headprobe" / "commands").rglob("*.py")
    watched = {f for source in sources for f in re.findall(r"^@observed\ndef (\w+)_command", source.read_text(), re.M)}
    page = (ROOT / "docs" / "scaling.md").read_text()
    sentence = re.search(r"^(.*) take both options\.", page, re.M)
    assert sentence is not None
    shown = {"needles": "eval needles", "run": "eval TASK"}
    assert set(re.findall(r"`([^`]+)`", sentence[1])) == {shown.get(name, name) for name in watched}

"""`headprobe referee` from the command line: files, tables, and what is refused before a model is loaded."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from headprobe.commands.referee import Pieces
from headprobe.models.catalog import bundled_model_folder
from tests.fork_server import ForkServer, Program

SHIPPED = str(bundled_model_folder() / "scores" / "demo--r2.json")

SMALL = (
    *("--detectors", "mass,echo", "--length", "256", "--trials", "4", "--prompts", "2"),
    *("--heads", "4", "--draws", "1", "--budgets", "32"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("referee")


@pytest.fixture
def finished(cli: Any, folder: Path) -> Path:
    """The folder of a finished run: that of the first test, where it has run in this process."""
    if not (folder / "referee.json").exists():
        assert cli("referee", *SMALL, "-o", folder).code == 0
    return folder


def test_it_writes_result_table_picture_and_score_files(cli: Any, folder: Path) -> None:
    done = cli("referee", *SMALL, "-o", folder)
    assert done.code == 0, done.err
    assert "scored by mass" in done.err
    assert "asked without heads: " in done.err
    assert "asked on budgets: retrieval-" in done.err
    assert (
        "warning: the model answers 2 of 2 prompts with all heads, of 2 needles: areas and shares rest on those alone, "
        "and below 5 needles no effect can be said; --prompts gives more"
    ) in done.err
    record = json.loads((folder / "referee.json").read_bytes())
    assert record["schema"] == "headprobe-referee/2"
    assert [detector["name"] for detector in record["detectors"]] == ["mass", "echo"]
    assert record["detectors"][0]["recall"]["4"] == 1.0
    assert record["gate"]["metric"] == "deciding_words"
    assert (record["prompts_answered"], record["needles_answered"]) == (2, 2)
    assert set(record["detectors"][0]["knockout"]["difference"]) == {"mean", "low", "high", "num"}
    assert [detector["knockout"]["effect"] for detector in record["detectors"]] == ["unclear", "unclear"]
    assert {path.name for path in (folder / "scores").iterdir()} == {"mass.json", "echo.json"}
    assert (folder / "referee.png").read_bytes().startswith(b"\x89PNG")
    for text in (done.out, (folder / "referee.md").read_text()):
        assert "2 of 2 fresh prompts" in text
        assert "(even budgets)" in text
    assert cli("scores", "validate", folder / "scores" / "echo.json").code == 0


def test_a_finished_run_is_kept_unless_it_is_to_be_replaced_or_gone_on_with(cli: Any, finished: Path) -> None:
    refused = cli("referee", *SMALL, "-o", finished)
    assert refused.code == 10
    assert "holds a run: continue with --resume or start over with --overwrite" in refused.err
    again = cli("referee", *SMALL, "-o", finished, "--resume", "--json")
    assert again.code == 0
    assert "scored by" not in again.err
    record = json.loads(again.out)
    assert record.pop("path") == str(finished)
    assert record == json.loads((finished / "referee.json").read_bytes())


def test_another_plan_does_not_go_on_with_it(cli: Any, finished: Path) -> None:
    done = cli("referee", *SMALL[:-1], "16", "-o", finished, "--resume")
    assert done.code != 0
    assert "written for another plan" in done.err
    assert len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--heads", "1,x"), "--heads has 'x', need whole numbers such as 16 or 16,32"),
        (("--budgets", ""), "--budgets"),
        (("--detectors", "r2,r9"), "unknown method 'r9'"),
        (("--trials", "0"), "trials is 0, need at least 1"),
        (("--length", "many"), "many"),
        (("--batch", "0"), "--batch is 0, need 1 to 1024"),
        (
            ("--scores", SHIPPED, "--detectors", "mass"),
            "holds scores of 'r2', which is not judged: --detectors names mass",
        ),
        (("--scores", SHIPPED, "--scores", SHIPPED), "both hold scores of r2"),
        (("--gqa", "sum"), "query heads are joined by 'mean' or 'max', not 'sum'"),
    ],
)
def test_what_cannot_be_is_one_line_before_the_model_loads(
    cli: Any, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = cli("referee", "--model", "./no-such-model", *options, "-o", tmp_path / "r")
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_score_files_that_are_there_are_taken_and_never_written_over(cli: Any, tmp_path: Path) -> None:
    held = Path(shutil.copy(SHIPPED, tmp_path / "gallery.json"))
    before = held.read_bytes()
    given = ("--detectors", "r2", *SMALL[2:])
    done = cli("referee", *given, "--scores", held, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    assert "scored by" not in done.err
    (row,) = json.loads((tmp_path / "out" / "referee.json").read_bytes())["detectors"]
    assert (row["name"], row["scores_file"], row["seconds"]) == ("r2", "gallery.json", None)
    assert row["recall"]["4"] == 1.0
    assert not (tmp_path / "out" / "scores").exists()
    assert held.read_bytes() == before
    other = cli("referee", *given, "-o", tmp_path / "out", "--resume")
    assert other.code == 9
    assert "was written for another plan" in other.err
    place = tmp_path / "again" / "scores" / "mass.json"
    place.parent.mkdir(parents=True)
    shutil.copy(SHIPPED, place)
    lost = cli("referee", "--detectors", "r2,mass", *SMALL[2:], "--scores", place, "-o", tmp_path / "again")
    assert (lost.code, place.read_bytes()) == (2, before)
    assert "are the same file: the input would be lost" in lost.err


def test_the_pieces_of_the_knockout_are_counted_in_tenths(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = Pieces()
    for done in range(5, 21):
        pieces.update(done, 20)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0].removeprefix("headprobe: ") for line in lines] == [
        f"asked without heads: {done} of 20 pieces" for done in (6, 8, 10, 12, 14, 16, 18, 20)
    ]


def test_slow_pieces_of_the_knockout_are_reported_every_two_minutes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headprobe.commands.referee.monotonic", itertools.count(0.0, 50.0).__next__)
    pieces = Pieces()
    for done in range(1, 8):
        pieces.update(done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "headprobe: asked without heads: 3 of 100 pieces, about 2 h 1 min left",
        "headprobe: asked without heads: 6 of 100 pieces, about 94 min left",
    ]


HANGING = """
import sys, time
from headprobe.profiling.journal import Journal
add = Journal.add
def add_and_wait(journal, record):
    add(journal, record)
    if journal.path.name == "knockout.jsonl" and len(journal.records) == 3:
        for _ in range(6000):  # an interrupt just before one long sleep would wait for its end
            time.sleep(0.05)
Journal.add = add_and_wait
from headprobe.__main__ import run
sys.exit(run())
"""


def test_a_run_that_was_killed_goes_on_where_it_stopped(
    cli: Any, server: ForkServer, finished: Path, tmp_path: Path
) -> None:
    process = server.fork("referee", *SMALL, "-o", "ended", program=Program(code=HANGING))
    journal, deadline = tmp_path / "ended" / "knockout.jsonl", time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") == 4:  # the plan stands first
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "ended" / "referee.json").exists()
    done = cli("referee", *SMALL, "-o", tmp_path / "ended", "--resume")
    assert done.code == 0, done.err
    assert "scored by" not in done.err
    assert journal.read_bytes() == (finished / "knockout.jsonl").read_bytes()
    records = [json.loads((place / "referee.json").read_bytes()) for place in (finished, tmp_path / "ended")]
    for record in records:
        assert record.pop("stages")["total"] > 0
        for detector in record["detectors"]:
            detector.pop("seconds")
    assert records[0] == records[1]

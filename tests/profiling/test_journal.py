from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from headprobe.errors import FileAccessError, FileFormatError, OptionError, OutputExistsError, ResumeError
from headprobe.events import listening
from headprobe.profiling.journal import Journal, check_journal
from tests.conftest import ROOT

PLAN = {"lengths": [512, 1024], "needles": {"name": "reasoning", "sha256": "ab"}, "seed": 0}


def finished(number: int) -> dict[str, object]:
    return {"trial": f"t{number}", "scores": {"r2": [[0.1 * number, 1 / 3]]}}


def test_records_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        for number in range(3):
            journal.add(finished(number))
    with Journal.resume(path, PLAN) as journal:
        assert journal.records == {f"t{n}": finished(n) for n in range(3)}


def test_every_record_is_on_disk_as_soon_as_it_is_added(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
        assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("cut", range(1, 30))
def test_a_last_line_cut_short_by_a_kill_is_dropped_and_written_over(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
        journal.add(finished(2))
    path.write_bytes(path.read_bytes()[:-cut])
    with Journal.resume(path, PLAN) as journal:
        assert set(journal.records) == {"t1"}
        journal.add(finished(2))
    with Journal.resume(path, PLAN) as journal:
        assert set(journal.records) == {"t1", "t2"}


def test_a_journal_killed_in_its_first_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    path.write_bytes(b'{"schema":"headprobe-jour')
    with Journal.resume(path, PLAN) as journal:
        assert journal.records == {}
    assert path.read_bytes().startswith(b'{"schema":"headprobe-journal/1","plan"')


def test_resuming_without_a_journal_starts_one(tmp_path: Path) -> None:
    with Journal.resume(tmp_path / "deep" / "run.journal", PLAN) as journal:
        assert journal.records == {}


def test_another_plan_is_refused_with_the_fields_that_differ(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    Journal.start(path, PLAN).__exit__(None, None, None)
    changed = {"lengths": [512, 2048], "needles": {"name": "reasoning", "sha256": "cd"}, "seed": 0}
    with pytest.raises(
        ResumeError, match=r"differs in lengths: \[512, 1024\] -> \[512, 2048\]; needles.sha256: ab -> cd"
    ):
        Journal.resume(path, changed)


def test_an_unfinished_journal_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    Journal.start(path, PLAN).__exit__(None, None, None)
    with pytest.raises(OutputExistsError, match="--resume or start over with --overwrite"):
        Journal.start(path, PLAN)


@pytest.mark.parametrize("bad", [b"not json\n", b"[1]\n", b'{"no": "trial"}\n'])
def test_damage_before_the_last_line_is_an_error_with_its_number(tmp_path: Path, bad: bytes) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
    path.write_bytes(path.read_bytes() + bad + b'{"trial": "t2"}\n')
    with pytest.raises(FileFormatError, match=r"run.journal:3: "):
        Journal.resume(path, PLAN)


def test_a_file_that_is_no_journal_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    path.write_bytes(b'{"schema": "headprobe/1"}\n')
    with pytest.raises(FileFormatError, match="not a headprobe-journal/1 journal"):
        Journal.resume(path, PLAN)


def test_a_discarded_journal_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.discard()
    assert not path.exists()


# -- what is no journal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notes", [b"my notes", b"my notes\n", b'{"mine": 1}\n', b"[]"])
@pytest.mark.parametrize(("resume", "overwrite"), [(False, False), (False, True), (True, False), (True, True)])
def test_a_file_of_somebody_elses_is_never_written_nor_removed(
    tmp_path: Path, notes: bytes, resume: bool, overwrite: bool
) -> None:
    path = tmp_path / "run.journal"
    path.write_bytes(notes)
    with pytest.raises(
        (OutputExistsError, FileFormatError), match=r"run.journal(:1)?: not a|exists but is not a journal"
    ):
        check_journal(path, resume=resume, overwrite=overwrite)
    with pytest.raises((OutputExistsError, FileFormatError)):
        Journal.open(path, PLAN, resume=resume, overwrite=overwrite)
    assert path.read_bytes() == notes


@pytest.mark.parametrize("raw", [b"", b'{"schema":"headpr', b'{"schema":"headprobe-journal/1","plan":{"se', b"\0\0\0"])
def test_a_journal_that_a_kill_left_empty_is_in_nobodys_way(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "run.journal"
    path.write_bytes(raw)
    assert check_journal(path, resume=False, overwrite=False) is False
    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
    with Journal.resume(path, PLAN) as journal:
        assert set(journal.records) == {"t1"}


def test_a_plan_that_cannot_be_written_down_leaves_no_journal(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="this plan cannot be written down: Integer exceeds 64-bit range"):
        Journal.start(tmp_path / "run.journal", {"seed": 2**64})
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with Journal.start(tmp_path / "a.journal", PLAN) as journal:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(FileAccessError, match=r"^cannot write .*a.journal: No space left on device$"):
            journal.add(finished(1))
    with pytest.raises(FileAccessError, match=r"^cannot write .*b.journal: No space left on device$"):
        Journal.start(tmp_path / "b.journal", PLAN)
    assert not (tmp_path / "b.journal").exists()


# -- damage ---------------------------------------------------------------------------------------------------------


def test_dropping_a_cut_line_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        assert not journal.was_cut
        journal.add(finished(1))
    for cut in (0, 1):
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) - cut])
        with Journal.resume(path, PLAN) as journal:
            assert journal.was_cut == bool(cut)


def test_a_record_that_the_run_would_not_write_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"

    def check(record: dict[str, object]) -> None:
        if record["trial"] == "t2":
            raise ValueError("no score")

    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
        journal.add(finished(2))
    before = path.read_bytes()
    with pytest.raises(
        FileFormatError, match=r"run.journal:3: damaged trial 't2': no score; remove the line and it runs"
    ):
        Journal.resume(path, PLAN, check)
    assert path.read_bytes() == before


# -- two processes --------------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from headprobe.profiling.journal import Journal
with Journal.start(Path(sys.argv[1]), {"seed": 0}) as journal:
    journal.add({"trial": "t1"})
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_journal_has_one_writer_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    held = path.read_bytes()
    told = f"another process is writing {path}: wait until it ends, or name another output"
    for resume, overwrite in [(False, False), (True, False), (False, True)]:
        with pytest.raises(ResumeError, match=re.escape(told)):
            check_journal(path, resume=resume, overwrite=overwrite)
        with pytest.raises(ResumeError, match=re.escape(told)):
            Journal.open(path, {"seed": 0}, resume=resume, overwrite=overwrite)
    assert path.read_bytes() == held
    holder.kill()
    holder.communicate()
    with Journal.resume(path, {"seed": 0}) as journal:
        assert set(journal.records) == {"t1"}


def test_a_journal_that_is_removed_while_we_wait_for_it_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
    locked = []

    def removed_first(descriptor: int) -> bool:
        if not locked:
            path.unlink()
        locked.append(descriptor)
        return True

    monkeypatch.setattr("headprobe.profiling.journal_file.try_lock", removed_first)
    with Journal.resume(path, PLAN) as journal:
        assert journal.records == {}
        journal.add(finished(2))
    assert len(locked) == 2
    assert path.read_bytes().count(b"\n") == 2


# -- damage at the end ----------------------------------------------------------------------------------------------

TAILS = {
    "zeros": (b"\0" * 4096, 1),
    "zeros with a newline": (b"\0" * 100 + b"\n" + b"\0" * 100 + b"\n", 2),
    "another file's bytes": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\n\xff\xfe\n", 4),
    "half a line and zeros": (b'{"trial": "t2", "sco' + b"\0" * 30 + b"\n", 1),
    "JSON that is no trial": (b"[1]\n{}\n", 2),
}


@pytest.mark.parametrize(("tail", "lines"), TAILS.values(), ids=list(TAILS))
def test_damage_at_the_end_is_dropped_with_the_number_of_its_lines(tmp_path: Path, tail: bytes, lines: int) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.add(finished(1))
    good = path.read_bytes()
    path.write_bytes(good + tail)
    heard: list[tuple[str, object]] = []
    with listening(lambda event, facts: heard.append((event, facts["lines"]))), Journal.resume(path, PLAN) as journal:
        assert (journal.dropped, journal.was_cut) == (lines, True)
        assert path.read_bytes() == good
        journal.add(finished(2))
    assert heard == [("retry", lines)]
    with Journal.resume(path, PLAN) as journal:
        assert dict(journal.records) == {"t1": finished(1), "t2": finished(2)}


# -- records --------------------------------------------------------------------------------------------------------


def test_records_are_read_from_the_file_and_few_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headprobe.profiling.journal_file.CACHED_BYTES", 200)
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        for number in range(50):
            journal.add(finished(number))
        records = journal.records
        assert records["t7"] == finished(7)
        assert [record for _, record in records.items()] == [finished(number) for number in range(50)]
        assert len(records._cached) < 5
        journal.discard()
    assert not path.exists()
    assert records["t7"] == finished(7)  # also of a file that is gone
    assert "t50" not in records
    with pytest.raises(KeyError):
        records["t50"]


def test_a_later_record_of_a_trial_replaces_the_earlier_one(tmp_path: Path) -> None:
    path = tmp_path / "run.journal"
    with Journal.start(path, PLAN) as journal:
        journal.add({"trial": "t1", "error": "full"})
        assert journal.records["t1"]["error"] == "full"
        journal.add_all([{"trial": "t2"}, {"trial": "t1", "error": None}])
        assert dict(journal.records) == {"t1": {"trial": "t1", "error": None}, "t2": {"trial": "t2"}}
    with Journal.resume(path, PLAN) as journal:
        assert dict(journal.records) == {"t1": {"trial": "t1", "error": None}, "t2": {"trial": "t2"}}

from __future__ import annotations

from pathlib import Path

import pytest

from headprobe.errors import FileFormatError, OutputExistsError, ResumeError
from headprobe.profiling.journal import Journal

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
    with pytest.raises(OutputExistsError, match="--resume or start anew with --overwrite"):
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

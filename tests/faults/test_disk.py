"""Disks that are full and folders that cannot be written: one line, exit code 11, and nothing that was done is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headprobe.errors import FileAccessError
from headprobe.profiling.journal import Journal
from headprobe.scores.files import write_atomically
from tests.conftest import ROOT
from tests.fork_server import ForkServer

SMALL = ("--lengths", "160,200", "--depths", "2", "--needles-per-cell", "1")
SCORE = ("score", *SMALL, "-o")
NEEDLES = ("eval", "needles", *SMALL, "--budgets", "16", "--policies", "full,snapkv", "--baselines", "none", "-o")
HEADPROBE = f"{sys.executable} -m headprobe"


def has_small_disks() -> bool:
    """Whether this user may mount a disk of a few pages in a namespace of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=8k", "none", "/mnt"], capture_output=True
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


def on_small_disk(folder: Path, size: str, *lines: str) -> list[str]:
    """What each of the shell's `lines` printed, and behind it `=` and its exit code, where `disk` is one of `size`."""
    (folder / "disk").mkdir()
    script = "\n".join([f"mount -t tmpfs -o size={size} none disk", *(f"({line}) 2>&1; echo =$?%" for line in lines)])
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script], cwd=folder, env=env, capture_output=True, text=True, check=False
    )
    return done.stdout.split("%\n")


small_disks = pytest.mark.skipif(not has_small_disks(), reason="no disk can be mounted in a namespace here")


@small_disks
@pytest.mark.parametrize(("size", "file"), [("4k", "a.journal"), ("16k", "a.json")])
def test_score_on_a_full_disk_keeps_what_is_done_and_goes_on(
    tmp_path: Path, server: ForkServer, size: str, file: str
) -> None:
    score = f"{HEADPROBE} {' '.join(SCORE)} disk/a.json"
    first, second, *_ = on_small_disk(
        tmp_path, size, score, "cp disk/a.journal kept.journal; ls -A disk", "mount -o remount,size=1m none disk",
        f"{score} --resume", "cp disk/a.json a.json",
    )  # fmt: skip
    told, code = first.strip().rsplit("\n=", 1)
    assert code == "11"
    assert told == f"headprobe: error: cannot write disk/{file}: No space left on device"
    assert second.splitlines()[0] == "a.journal"  # no temporary files, no half of a score file
    kept = (tmp_path / "kept.journal").read_bytes()
    assert kept.endswith(b"\n")
    assert kept.count(b"\n") >= 2
    assert server.run(*SCORE, "one.json") == 0, server.printed
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "a.json"))
    assert one["id"] == other["id"]


@small_disks
def test_eval_on_a_full_disk_keeps_its_rows(tmp_path: Path) -> None:
    needles = f"{HEADPROBE} {' '.join(NEEDLES)} disk/e"
    first, *_ = on_small_disk(
        tmp_path, "16k", needles, "mount -o remount,size=4m none disk", f"{needles} --resume", "cp -r disk/e e"
    )
    told = first.strip().splitlines()
    assert told[-1] == "=11"
    assert told[-2].startswith("headprobe: error: cannot write disk/e/")
    assert told[-2].endswith("No space left on device")
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["is_complete"]
    rows = [json.loads(line)["trial"] for line in (tmp_path / "e" / "trials.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == len(set(rows)) == 8


@small_disks
def test_a_read_only_disk_is_refused_before_the_model_loads(tmp_path: Path) -> None:
    lines = [f"{HEADPROBE} {' '.join(command)} disk/{name}" for command, name in [(SCORE, "a.json"), (NEEDLES, "e")]]
    lines += [f"{HEADPROBE} {' '.join(SCORE)} a.json {option} disk/x" for option in ("--log-json", "--profile")]
    given = on_small_disk(tmp_path, "1m", "mount -o remount,ro none disk", *lines)[1:5]
    assert [printed.strip().splitlines()[-1] for printed in given] == ["=11"] * 4
    for printed in given:
        line, *others = printed.strip().splitlines()
        assert line.startswith("headprobe: error: cannot write disk/")
        assert line.endswith("Read-only file system")
        assert len(others) == 1
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("command", [SCORE, pytest.param(NEEDLES, marks=pytest.mark.slow)], ids=["score", "needles"])
def test_a_file_that_may_not_grow_ends_the_run_with_its_name(
    tmp_path: Path, server: ForkServer, command: tuple[str, ...]
) -> None:
    output = "a.json" if command is SCORE else "a"
    assert server.run(*command, output, limit=5000) == 11
    last = server.printed.splitlines()[-1]
    assert last.startswith("headprobe: error: cannot write a")
    assert last.endswith("File too large")
    rows = tmp_path / ("a.journal" if command is SCORE else "a/trials.jsonl")
    assert rows.read_bytes().endswith(b"\n")
    assert server.run(*command, output, "--resume") == 0, server.printed


def test_a_line_that_did_not_fit_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real = tmp_path / "a.journal", os.write
    with Journal.start(path, {"seed": 0}) as journal:
        journal.add({"trial": "one"})
        before = path.read_bytes()

        def half(descriptor: int, data: bytes) -> int:
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return real(descriptor, data[: len(data) // 2])

        monkeypatch.setattr(os, "write", half)
        with pytest.raises(FileAccessError, match=r"a.journal: No space left on device$"):
            journal.add({"trial": "two", "response": "x" * 100})
        monkeypatch.undo()
        assert path.read_bytes() == before
        journal.add({"trial": "three"})
        assert dict(journal.records) == {"one": {"trial": "one"}, "three": {"trial": "three"}}
    with Journal.resume(path, {"seed": 0}) as journal:
        assert list(journal.records) == ["one", "three"]
        assert not journal.was_cut


def test_a_file_that_does_not_fit_leaves_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_atomically(tmp_path / "a.json", b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileAccessError, match=r"a.json: No space left on device$"):
        write_atomically(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]

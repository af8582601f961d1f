"""Disks that are full and folders that cannot be written: one line, exit code 11, and nothing that was done is lost."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headprobe.errors import FileAccessError
from headprobe.profiling.journal import Journal
from headprobe.scores.files import write_atomically
from tests.fork_server import ForkServer, LoadedProcess, Program, serving

SMALL = ("--lengths", "160,200", "--depths", "2", "--needles-per-cell", "1")
SCORE = ("score", *SMALL, "-o")
NEEDLES = ("eval", "needles", *SMALL, "--budgets", "16", "--policies", "full,snapkv", "--baselines", "none", "-o")
SHELL = Program(code="import subprocess, sys; sys.exit(subprocess.call(['sh', '-c', sys.argv[1]]))")
Printed = tuple[int, str]


def has_small_disks() -> bool:
    """Whether this user may mount a disk of a few pages in a namespace of its own."""
    try:
        done = subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "-o", "size=8k", "none", "/mnt"], capture_output=True
        )
    except FileNotFoundError:
        return False
    return done.returncode == 0


@pytest.fixture(scope="module")
def mounting() -> Iterator[LoadedProcess]:
    """A process that has loaded everything, and what it forks, see the disks that are mounted there: nobody else."""
    with serving("unshare", "-Urm") as process:
        yield process


@pytest.fixture
def disks(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, mounting: LoadedProcess) -> Iterator[ForkServer]:
    """Commands, and lines of the shell, that see small disks."""
    found = ForkServer(mounting, tmp_path, tmp_path_factory.mktemp("streams"))
    yield found
    found.clear()


def on_small_disk(disks: ForkServer, size: str, *lines: str | tuple[str, ...]) -> list[Printed]:
    """How each line of the shell or command of headprobe ended, and what it printed, where `disk` is one of `size`."""
    (disks.folder / "disk").mkdir()
    assert disks.run(f"mount -t tmpfs -o size={size} none disk", program=SHELL) == 0, disks.printed
    ended = []
    for line in lines:
        code = disks.run(line, program=SHELL) if isinstance(line, str) else disks.run(*line)
        ended.append((code, disks.printed))
    return ended


small_disks = pytest.mark.skipif(not has_small_disks(), reason="no disk can be mounted in a namespace here")


@small_disks
@pytest.mark.parametrize(("size", "file"), [("4k", "a.journal"), ("16k", "a.json")])
def test_score_on_a_full_disk_keeps_what_is_done_and_goes_on(
    tmp_path: Path, server: ForkServer, disks: ForkServer, size: str, file: str
) -> None:
    score = (*SCORE, "disk/a.json")
    first, second, *others = on_small_disk(
        disks, size, score, "cp disk/a.journal kept.journal; ls -A disk", "mount -o remount,size=1m none disk",
        (*score, "--resume"), "cp disk/a.json a.json",
    )  # fmt: skip
    assert first == (11, f"headprobe: error: cannot write disk/{file}: No space left on device\n")
    assert second[1].splitlines() == ["a.journal"]  # no temporary files, no half of a score file
    assert [code for code, _ in others] == [0, 0, 0], others
    kept = (tmp_path / "kept.journal").read_bytes()
    assert kept.endswith(b"\n")
    assert kept.count(b"\n") >= 2
    assert server.run(*SCORE, "one.json") == 0, server.printed
    one, other = (json.loads((tmp_path / name).read_text()) for name in ("one.json", "a.json"))
    assert one["id"] == other["id"]


@small_disks
def test_eval_on_a_full_disk_keeps_its_rows(tmp_path: Path, disks: ForkServer) -> None:
    needles = (*NEEDLES, "disk/e")
    (code, told), *_ = on_small_disk(
        disks, "16k", needles, "mount -o remount,size=4m none disk", (*needles, "--resume"), "cp -r disk/e e"
    )
    assert code == 11
    last = told.splitlines()[-1]
    assert last.startswith("headprobe: error: cannot write disk/e/")
    assert last.endswith("No space left on device")
    summary = json.loads((tmp_path / "e" / "summary.json").read_text())
    assert summary["is_complete"]
    rows = [json.loads(line)["trial"] for line in (tmp_path / "e" / "trials.jsonl").read_text().splitlines()[1:]]
    assert len(rows) == len(set(rows)) == 8


@small_disks
def test_a_read_only_disk_is_refused_before_the_model_loads(tmp_path: Path, disks: ForkServer) -> None:
    commands = [(*SCORE, "disk/a.json"), (*NEEDLES, "disk/e")]
    commands += [(*SCORE, "a.json", option, "disk/x") for option in ("--log-json", "--profile")]
    mounted, *given = on_small_disk(disks, "1m", "mount -o remount,ro none disk", *commands)
    assert mounted == (0, "")
    assert [code for code, _ in given] == [11] * 4
    for _, printed in given:
        assert printed.startswith("headprobe: error: cannot write disk/")
        assert printed.endswith("Read-only file system\n")
        assert printed.count("\n") == 1
    assert not (tmp_path / "a.json").exists()


@pytest.mark.parametrize("command", [SCORE, pytest.param(NEEDLES, marks=pytest.mark.slow)], ids=["score", "needles"])
def test_a_file_that_may_not_grow_ends_the_run_with_its_name(
    tmp_path: Path, server: ForkServer, command: tuple[str, ...]
) -> None:
    output = "a.json" if command is SCORE else "a"
    assert server.run(*command, output, program=Program(limit=5000)) == 11
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

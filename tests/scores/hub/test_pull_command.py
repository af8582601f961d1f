"""`headprobe scores pull` as a user types it, from a hub on this machine that strangers have filled."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headprobe.scores.score_file import read_score_file, score_file_bytes
from tests.conftest import CliResult
from tests.hub_stand_in import Hub
from tests.scores.conftest import build_scores
from tests.scores.hub.conftest import REPO, make_score_bytes

RunCli = Callable[..., CliResult]


def pull(cli: RunCli, *options: object) -> CliResult:
    return cli("scores", "pull", *options, "--repo", REPO)


def written(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def keyed(scale: float = 0.9, seed: int = 0) -> bytes:
    """A foreign file of 4 x 4 heads and 30 trials."""
    random = np.random.default_rng(seed)
    heads = {f"{i // 4}-{i % 4}": random.normal(scale * i / 16, 0.02, 30).clip(0, 1).tolist() for i in range(16)}
    return json.dumps(heads).encode()


def test_score_files_come_into_the_folder_as_they_are(
    hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes
) -> None:
    made = hub.repo(REPO, {"toy.json": score_bytes, "sub/foreign.json": keyed(), "README.md": b"#", "toy.png": b"\x89"})
    result = pull(cli, "--json")
    record = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert {key: record[key] for key in ("repo", "revision", "folder", "dry_run")} == {
        "repo": REPO, "revision": made.head, "folder": "scores", "dry_run": False,
    }  # fmt: skip
    told = [(f["name"], f["path"], f["format"], f["refused"], f["sha256"]) for f in record["files"]]
    assert told == [
        ("toy.json", "scores/toy.json", "headprobe", None, sha256(score_bytes).hexdigest()),
        ("sub/foreign.json", "scores/sub/foreign.json", "headkv", None, sha256(keyed()).hexdigest()),
    ]
    assert written(tmp_path) == ["scores/sub/foreign.json", "scores/toy.json"]
    assert (tmp_path / "scores" / "toy.json").read_bytes() == score_bytes


def test_what_was_pushed_comes_back_the_same(hub: Hub, cli: RunCli, score_file: Path) -> None:
    cli("scores", "push", score_file, "--repo", REPO)
    lines = pull(cli, "-o", "back").out.splitlines()
    assert lines[0] == f"{REPO} at {hub.repos[REPO].head}"
    assert lines[-1].split()[-3:] == ["written", "to", "back/toy--r2.json"]
    assert read_score_file("back/toy--r2.json").mean.tolist() == read_score_file(score_file).mean.tolist()


def test_named_files_and_a_revision(hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes) -> None:
    made = hub.repo(REPO, {"a.json": score_bytes, "b.json": score_bytes})
    old = made.head
    made.add(files={"a.json": make_score_bytes(1)})
    assert pull(cli, "a.json", "--revision", old).code == 0
    assert written(tmp_path) == ["scores/a.json"]
    assert (tmp_path / "scores" / "a.json").read_bytes() == score_bytes


def test_a_file_that_is_there_is_not_fetched_again(hub: Hub, cli: RunCli, score_bytes: bytes) -> None:
    hub.repo(REPO, {"a.json": score_bytes})
    pull(cli)
    hub.requests.clear()
    assert pull(cli).out.splitlines()[-1].endswith("already there: scores/a.json")
    assert len(hub.requests) == 1


def test_another_file_of_that_name_is_replaced_only_when_told(
    hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes
) -> None:
    hub.repo(REPO, {"a.json": score_bytes, "b.json": score_bytes})
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "b.json").write_bytes(b"mine")
    result = pull(cli)
    assert (result.code, result.err) == (
        10, "headprobe: error: scores/b.json already exists; --overwrite replaces it\n",
    )  # fmt: skip
    assert written(tmp_path) == ["scores/b.json"]
    assert len(hub.requests) == 1
    assert pull(cli, "--overwrite").code == 0
    assert (tmp_path / "scores" / "b.json").read_bytes() == score_bytes


def test_a_dry_run_lists_and_fetches_nothing(hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes) -> None:
    hub.repo(REPO, {"a.json": score_bytes, "../b.json": score_bytes})
    result = pull(cli, "--dry-run")
    assert result.out.splitlines()[3].split() == ["a.json", f"{len(score_bytes):,}", "not", "fetched"]
    assert "refused: the file name '../b.json' has a part that is empty" in result.out.splitlines()[4]
    assert written(tmp_path) == []
    assert len(hub.requests) == 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "unreadable: "),
        (b"<html>", "unreadable: "),
        (b'{"a": 1, "a": 2}', "unreadable: "),
        (b"[" * 10**5, "unreadable: "),
        (score_file_bytes(build_scores([np.full((2, 2), 1.88)], [True])), "above-bound: "),
        (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", "unreadable: "),
    ],
)  # fmt: skip
def test_a_file_with_an_error_is_refused_and_not_written(
    hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes, data: bytes, reason: str
) -> None:
    hub.repo(REPO, {"bad.json": data, "good.json": score_bytes})
    result = pull(cli, "--json")
    bad = json.loads(result.out)["files"][0]
    assert result.code == 3
    assert bad["refused"].startswith(reason)
    assert (bad["path"], "/tmp" in result.out) == (None, False)
    assert result.err.splitlines()[-1].startswith(f"headprobe: error: 1 of 2 files of {REPO} refused, the first")
    assert written(tmp_path) == ["scores/good.json"]


def test_errors_are_put_up_with_when_told_but_not_what_cannot_be_read(hub: Hub, cli: RunCli, tmp_path: Path) -> None:
    above = score_file_bytes(build_scores([np.full((2, 2), 1.88)], [True]))
    hub.repo(REPO, {"above.json": above, "broken.json": b"{"})
    result = pull(cli, "--with-errors")
    assert "above.json: error: above-bound: " in result.err
    assert (result.code, written(tmp_path)) == (3, ["scores/above.json"])


def test_a_file_that_holds_the_scores_of_another_model_is_refused(hub: Hub, cli: RunCli, tmp_path: Path) -> None:
    hub.repo(REPO, {"Mistral-7B-Instruct-v0.2.json": keyed()})
    result = pull(cli)
    assert result.code == 3
    assert "Mistral" in result.out
    assert written(tmp_path) == []


def test_warnings_are_told_beside_the_data(hub: Hub, cli: RunCli) -> None:
    table = np.array([[0.123, 0.2345], [0.7123, 0.3717]])
    hub.repo(REPO, {"few.json": score_file_bytes(build_scores([table], [True]))})
    result = pull(cli)
    assert result.code == 0
    assert result.err.startswith("few.json: warning: too-few-trials: ")
    assert (result.out.count("too-few-trials"), len(result.err.splitlines())) == (0, 1)


@pytest.mark.parametrize(
    "name",
    ["../escaped.json", "/tmp/escaped.json", "a/../../b.json", ".hidden.json", "C:\\escaped.json", "x\x1b[2J.json"],
)
def test_names_that_could_leave_the_folder_are_refused(
    hub: Hub, cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, score_bytes: bytes, name: str
) -> None:
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(tmp_path / "own")
    hub.repo(REPO, {name: score_bytes, "good.json": score_bytes})
    result = pull(cli)
    assert result.code == 3
    assert "refused: the file name" in result.out
    assert "\x1b" not in result.out + result.err
    assert written(tmp_path) == ["own/scores/good.json"]
    assert not Path("/tmp/escaped.json").exists()
    assert sum("resolve" in path for _, path in hub.requests) == 1


def test_a_link_in_the_folder_is_not_followed_out_of_it(
    hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes
) -> None:
    hub.repo(REPO, {"sub/a.json": score_bytes})
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "sub").symlink_to(tmp_path / "elsewhere")
    result = pull(cli, "--overwrite")
    assert result.code == 11
    assert "scores/sub/a.json leads out of scores by a symbolic link" in result.err
    assert written(tmp_path / "elsewhere") == []


def test_sizes_are_limited_before_anything_is_fetched(hub: Hub, cli: RunCli, tmp_path: Path) -> None:
    hub.repo(REPO, {"a.json": b" " * 700_000, "b.json": b" " * 700_000})
    result = pull(cli, "--max-mib", "1")
    told = f"headprobe: error: {REPO}: 2 file(s) of 1.3 MiB together; the limit is 1 MiB (--max-mib)\n"
    assert (result.code, result.err) == (3, told)
    assert len(hub.requests) == 1


def test_a_hub_that_sends_more_than_it_announced_is_cut_off(
    hub: Hub, cli: RunCli, tmp_path: Path, score_bytes: bytes
) -> None:
    made = hub.repo(REPO, {"a.json": score_bytes})
    hub.instead[f"/datasets/{REPO}/resolve/{made.head}/a.json"] = (200, {}, score_bytes + b" " * 10_000_000)
    result = pull(cli)
    assert result.code == 3
    assert f"the hub sends more than the {len(score_bytes):,} bytes that are allowed" in result.out
    assert written(tmp_path) == []


@pytest.mark.parametrize(
    ("files", "options", "told"),
    [
        ({"README.md": b""}, [], "holds no .json file; it holds README.md"),
        ({}, [], "holds no .json file; it holds nothing"),
        ({"config.json": b"{}"}, [], "holds no .json file; it holds config.json"),
        ({"a.json": b""}, ["b.json"], "holds no file 'b.json'; it holds a.json"),
        ({f"{i}.json": b"" for i in range(65)}, [], "holds 65 .json files, the limit is 64: name the ones you want"),
    ],
)
def test_what_cannot_be_chosen_is_told(
    hub: Hub, cli: RunCli, files: dict[str, bytes], options: list[Any], told: str
) -> None:
    hub.repo(REPO, files)
    result = pull(cli, *options)
    assert (result.code, result.err) == (2, f"headprobe: error: {REPO} {told}\n")


def test_names_that_differ_in_case_only_are_refused(hub: Hub, cli: RunCli, score_bytes: bytes) -> None:
    hub.repo(REPO, {"a.json": score_bytes, "A.json": score_bytes})
    result = pull(cli)
    assert (result.code, "two files are called 'a.json' apart from upper and lower case" in result.err) == (3, True)
    assert pull(cli, "A.json").code == 0


def test_a_repository_that_is_not_there_is_told(hub: Hub, cli: RunCli) -> None:
    told = f"headprobe: error: the hub has no dataset repository {REPO}, or a private one (`hf auth login`)\n"
    result = pull(cli)
    assert (result.code, result.err) == (2, told)
    assert "Give --repo lena/head-scores" in cli("scores", "pull", REPO).err
    assert "Give --repo USER/NAME" in cli("scores", "pull").err

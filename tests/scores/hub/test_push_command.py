"""`headprobe scores push` as a user types it, against a hub on this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants

from headprobe.scores.score_file import score_file_bytes
from tests.conftest import ROOT, CliResult
from tests.hub_stand_in import TOKEN, Hub
from tests.scores.conftest import build_scores
from tests.scores.hub.conftest import REPO
from tests.test_imports import HEAVY, loaded_modules

RunCli = Callable[..., CliResult]
NAMES = ["toy--r2.json", "toy--r2.png", "README.md"]


def push(cli: RunCli, file: Path, *options: object) -> CliResult:
    return cli("scores", "push", file, "--repo", REPO, *options)


def test_a_push_makes_the_repository_and_puts_file_picture_and_card_there(
    hub: Hub, cli: RunCli, score_file: Path
) -> None:
    result = push(cli, score_file, "--json")
    record = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    made = hub.repos[REPO]
    assert list(made.files) == NAMES
    assert made.files["toy--r2.json"] == score_file.read_bytes()
    assert made.files["toy--r2.png"].startswith(b"\x89PNG")
    assert made.files["README.md"].decode() == record["card"]
    assert (made.private, made.messages[-1], record["revision"]) == (False, "Add toy--r2.json", made.head)
    assert record["url"] == f"{hub.endpoint}/datasets/{REPO}"
    assert [(f["name"], f["change"]) for f in record["files"]] == [(name, "new") for name in NAMES]
    assert (record["new_repository"], record["dry_run"], record["private"]) == (True, False, False)


def test_without_json_a_table_and_the_commit_are_printed(hub: Hub, cli: RunCli, score_file: Path) -> None:
    lines = push(cli, score_file).out.splitlines()
    assert lines[0] == f"{hub.endpoint}/datasets/{REPO} (new public dataset repository)"
    assert [line.split()[0] for line in lines[3:6]] == NAMES
    assert lines[-1] == f"pushed as {hub.repos[REPO].head}"


def test_a_dry_run_shows_all_that_would_go_and_sends_nothing(hub: Hub, cli: RunCli, score_file: Path) -> None:
    hub.repo(REPO, {"README.md": b"# Mine\n", "other.txt": b"x"})
    shown = push(cli, score_file, "--dry-run").out
    record = json.loads(push(cli, score_file, "--dry-run", "--json").out)
    assert [(f["name"], f["change"]) for f in record["files"]] == [
        ("toy--r2.json", "new"),
        ("toy--r2.png", "new"),
        ("README.md", "changed"),
    ]
    assert record["card"].startswith("# Mine\n\n<!-- headprobe: begin toy--r2.json -->\n## toy--r2.json\n")
    assert record["card"] in shown
    assert shown.endswith("\ndry run: nothing was sent\n")
    assert (record["dry_run"], record["revision"]) == (True, None)
    assert hub.writes == []
    assert push(cli, score_file).code == 0
    assert hub.repos[REPO].files["README.md"].decode() == record["card"]


def test_a_dry_run_works_without_the_hub_and_says_so(
    hub: Hub, cli: RunCli, score_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "")
    lines = push(cli, score_file, "--dry-run").out.splitlines()
    assert lines[3].split() == ["toy--r2.json", f"{score_file.stat().st_size:,}", "unknown"]
    assert lines[-3].endswith("HF_HUB_OFFLINE is set, so the hub is not contacted")
    assert lines[-2] == "you are not logged in to the hub: `hf auth login`, or HF_TOKEN"
    assert push(cli, score_file).code == 11


def test_what_is_there_already_is_not_sent_again(hub: Hub, cli: RunCli, score_file: Path) -> None:
    push(cli, score_file)
    commits = len(hub.repos[REPO].commits)
    again = push(cli, score_file)
    assert again.out.splitlines()[-1] == f"everything is already there, at {hub.repos[REPO].head}"
    assert (again.code, len(hub.repos[REPO].commits)) == (0, commits)


def test_another_file_of_that_name_is_replaced_only_when_told(hub: Hub, cli: RunCli, score_file: Path) -> None:
    hub.repo(REPO, {"toy--r2.json": b"other", "toy--r2.png": b"other"})
    result = push(cli, score_file)
    told = f"headprobe: error: {REPO} holds another toy--r2.json already; --overwrite replaces it\n"
    assert (result.code, result.err) == (10, told)
    assert hub.writes == []
    assert push(cli, score_file, "--overwrite").code == 0
    assert hub.repos[REPO].files["toy--r2.json"] == score_file.read_bytes()


def test_a_picture_of_that_name_is_not_overwritten_either(hub: Hub, cli: RunCli, score_file: Path) -> None:
    hub.repo(REPO, {"toy--r2.png": b"a photo"})
    assert push(cli, score_file).code == 10
    assert hub.repos[REPO].files["toy--r2.png"] == b"a photo"


def test_two_files_share_a_repository_and_its_card(hub: Hub, cli: RunCli, score_file: Path) -> None:
    other = score_file.rename("other.json")
    push(cli, other)
    score_file.write_bytes(other.read_bytes())
    push(cli, score_file)
    made = hub.repos[REPO]
    assert sorted(made.files) == ["README.md", "other.json", "other.png", "toy--r2.json", "toy--r2.png"]
    card = made.files["README.md"].decode()
    assert [line for line in card.splitlines() if line.startswith("## ")] == ["## other.json", "## toy--r2.json"]


def test_private_holds_for_new_repositories_only(hub: Hub, cli: RunCli, score_file: Path) -> None:
    assert push(cli, score_file, "--private").out.splitlines()[0].endswith("(new private dataset repository)")
    assert hub.repos[REPO].private
    hub.repo(REPO)
    result = push(cli, score_file, "--private")
    assert result.code == 2
    assert "--private: lena/head-scores already exists and is public" in result.err
    assert hub.repos[REPO].files == {}


def test_a_commit_of_somebody_else_in_between_is_not_overwritten(hub: Hub, cli: RunCli, score_file: Path) -> None:
    made = hub.repo(REPO)
    hub.before_commit = lambda: made.add(files={"README.md": b"theirs"})
    result = push(cli, score_file)
    told = f"headprobe: error: nothing was pushed to {REPO}: somebody else pushed meanwhile; push again\n"
    assert (result.code, result.err) == (11, told)
    assert made.files == {"README.md": b"theirs"}


@pytest.mark.parametrize(
    ("token", "there", "told"),
    [
        ("", False, "the hub does not know you (`hf auth login`, or HF_TOKEN)"),
        ("hf_other", True, "your token may not write there (it needs the right to write, and the name must be yours)"),
    ],
)
def test_without_the_right_to_write_nothing_is_pushed(
    hub: Hub, cli: RunCli, score_file: Path, monkeypatch: pytest.MonkeyPatch, token: str, there: bool, told: str
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    if there:
        hub.repo(REPO)
    result = push(cli, score_file)
    assert (result.code, result.err) == (11, f"headprobe: error: nothing was pushed to {REPO}: {told}\n")


def test_a_file_with_an_error_is_not_pushed(hub: Hub, cli: RunCli, tmp_path: Path) -> None:
    file = tmp_path / "bad.json"
    file.write_bytes(score_file_bytes(build_scores([np.full((2, 2), 1.5), np.full((2, 2), 1.88)], [True, True])))
    result = push(cli, file)
    assert result.code == 3
    assert result.err.startswith(f"headprobe: error: {file}: is not pushed: ")
    assert result.err.endswith("(see `headprobe scores validate`)\n")
    file.write_bytes(b'{"schema": "headprobe/1"}')
    assert push(cli, file).code == 3
    assert hub.writes == []


def test_a_foreign_file_is_to_be_converted_first(hub: Hub, cli: RunCli, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    table = {f"{layer}-{head}": random.uniform(0, 0.9, 30).tolist() for layer in range(4) for head in range(4)}
    file = tmp_path / "heads.json"
    file.write_text(json.dumps(table), encoding="utf-8")
    result = push(cli, file)
    assert (result.code, result.err) == (
        3,
        f"headprobe: error: {file}: is a headkv file; `headprobe scores convert` makes one to push\n",
    )


@pytest.mark.parametrize("name", ["README.md", "a b.json", "x`y.json", "scores.txt", "a(b).json"])
def test_names_that_would_not_do_in_a_card_are_refused(hub: Hub, cli: RunCli, name: str) -> None:
    result = push(cli, Path(name))
    assert result.code == 2
    assert "need a name of letters, digits and '_.,+=@-' that ends in .json" in result.err


def test_a_card_that_is_no_text_is_left_alone(hub: Hub, cli: RunCli, score_file: Path) -> None:
    hub.repo(REPO, {"README.md": b"\xff\xfe"})
    result = push(cli, score_file)
    assert (result.code, result.err) == (3, f"headprobe: error: {REPO}/README.md: byte 0 is not UTF-8\n")


def test_the_address_of_the_hub_comes_from_the_environment(hub: Hub, score_file: Path, tmp_path: Path) -> None:
    own = {"HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    paths = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "HF_HOME": str(tmp_path / "hf")}
    words = [sys.executable, "-m", "headprobe", "scores", "push", str(score_file), "--repo", REPO, "--json"]
    done = subprocess.run(words, env={**os.environ, **own, **paths}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["revision"] == hub.repos[REPO].head


@pytest.mark.parametrize("command", ["push", "pull"])
def test_help_loads_nothing_heavy_but_the_hub(command: str) -> None:
    loaded = loaded_modules(f"from headprobe.cli import main; main(['scores', '{command}', '--help'])")
    assert loaded & HEAVY <= {"numpy", "huggingface_hub"}

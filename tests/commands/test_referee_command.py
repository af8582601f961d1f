"""`headprobe referee` from the command line: files, tables, and what is refused before a model is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

SMALL = (
    *("--detectors", "mass,echo", "--length", "256", "--trials", "4", "--prompts", "2"),
    *("--heads", "4", "--draws", "1", "--budgets", "32"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("referee")


def test_it_writes_result_table_picture_and_score_files(cli: Any, folder: Path) -> None:
    done = cli("referee", *SMALL, "-o", folder)
    assert done.code == 0, done.err
    assert "scored by mass" in done.err
    assert "asked on a budget: even 32" in done.err
    assert "warning: the model answers 2 of 2 prompts with all heads: areas and shares rest on those alone" in done.err
    record = json.loads((folder / "referee.json").read_bytes())
    assert record["schema"] == "headprobe-referee/1"
    assert [detector["name"] for detector in record["detectors"]] == ["mass", "echo"]
    assert record["detectors"][0]["recall"]["4"] == 1.0
    assert {path.name for path in (folder / "scores").iterdir()} == {"mass.json", "echo.json"}
    assert (folder / "referee.png").read_bytes().startswith(b"\x89PNG")
    for text in (done.out, (folder / "referee.md").read_text()):
        assert "2 of 2 fresh prompts" in text
        assert "(even budgets)" in text
    assert cli("scores", "validate", folder / "scores" / "echo.json").code == 0


def test_a_finished_run_is_kept_unless_it_is_to_be_replaced_or_gone_on_with(cli: Any, folder: Path) -> None:
    refused = cli("referee", *SMALL, "-o", folder)
    assert refused.code == 10
    assert "holds a run: continue with --resume or start over with --overwrite" in refused.err
    again = cli("referee", *SMALL, "-o", folder, "--resume", "--json")
    assert again.code == 0
    assert "scored by" not in again.err
    record = json.loads(again.out)
    assert record.pop("path") == str(folder)
    assert record == json.loads((folder / "referee.json").read_bytes())


def test_another_plan_does_not_go_on_with_it(cli: Any, folder: Path) -> None:
    done = cli("referee", *SMALL[:-1], "16", "-o", folder, "--resume")
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

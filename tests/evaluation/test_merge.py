"""Parts of an evaluation that are put together without its model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import FileFormatError
from headprobe.evaluation.merge import merged_run
from headprobe.evaluation.needle_trial import MEASURED
from headprobe.evaluation.summaries import EvaluationFrame
from headprobe.profiling.journal import Journal, contents
from tests.conftest import CliResult
from tests.evaluation.shared_parts import FILES, NEEDLES, TASK, bare, rows

RunCli = Callable[..., CliResult]
BOTH = pytest.mark.parametrize("command", [NEEDLES, TASK], ids=["needles", "task"])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, ...], Path]:
    """By command a folder that is yet to be filled; see `parts_of`."""
    return {command: tmp_path_factory.mktemp(name) for command, name in FILES.items()}


def parts_of(made: dict[tuple[str, ...], Path], command: tuple[str, ...], cli: RunCli) -> Path:
    """A folder with `one`, the run of one process, and `parts`, those of three; made once."""
    folder = made[command]
    if not (folder / "one").exists():
        assert cli(*command, "-o", str(folder / "one")).code == 0
        for part in (3, 1, 2):
            assert cli(*command, "-o", str(folder / "parts"), "--shard", f"{part}/3").code == 0
    return folder


@BOTH
def test_merged_parts_are_the_run_of_one_process(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path], command: tuple[str, ...]
) -> None:
    folder, name = parts_of(made, command, cli), FILES[command]
    shutil.copytree(folder / "parts", tmp_path / "e")
    done = cli("eval", "merge", "e")
    assert done.code == 0, done.err
    assert "written to e/" in done.out
    assert rows(tmp_path / "e" / name) == rows(folder / "one" / name)
    one, other = (json.loads((place / "summary.json").read_text()) for place in (folder / "one", tmp_path / "e"))
    assert bare(one) == bare(other)
    assert list(one) == list(other)
    assert {p.name for p in (tmp_path / "e").iterdir()} == {p.name for p in (folder / "one").iterdir()}
    assert cli("eval", "merge", "e", "--json").code == 0  # once more changes nothing
    assert rows(tmp_path / "e" / name) == rows(folder / "one" / name)


@BOTH
def test_parts_of_several_folders_become_one_elsewhere_and_stay_as_they_are(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path], command: tuple[str, ...]
) -> None:
    folder, name = parts_of(made, command, cli), FILES[command]
    places = []
    for number, path in enumerate(sorted((folder / "parts").iterdir())):
        (tmp_path / f"m{number}").mkdir()
        shutil.copy(path, tmp_path / f"m{number}")
        places.append(f"m{number}")
    before = {path: path.read_bytes() for place in places for path in (tmp_path / place).iterdir()}
    done = cli("eval", "merge", *places, "-o", "all", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out)["is_complete"] is True
    assert rows(tmp_path / "all" / name) == rows(folder / "one" / name)
    assert {path: path.read_bytes() for place in places for path in (tmp_path / place).iterdir()} == before
    again = cli("eval", "merge", *places, "-o", "all")
    assert again.code == 10
    assert f"all/{name} holds rows already" in again.err
    assert cli("eval", "merge", *places, "-o", "all", "--overwrite").code == 0


@BOTH
def test_what_is_merged_goes_on_as_any_run_does(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path], command: tuple[str, ...]
) -> None:
    folder, name = parts_of(made, command, cli), FILES[command]
    shutil.copytree(folder / "parts", tmp_path / "e")
    assert cli("eval", "merge", "e").code == 0
    done = cli(*command, "-o", "e", "--resume")
    assert done.code == 0, done.err
    assert rows(tmp_path / "e" / name) == rows(folder / "one" / name)


def test_a_row_that_found_no_memory_is_merged_as_one(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    shutil.copytree(parts_of(made, NEEDLES, cli) / "parts", tmp_path / "e")
    first = min((tmp_path / "e").iterdir())
    header, row, *others = first.read_text().splitlines()
    lost = {**json.loads(row), **dict.fromkeys(MEASURED), "error": "no memory"}
    first.write_text("\n".join([header, json.dumps(lost), *others]) + "\n")
    done = cli("eval", "merge", "e", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["is_complete"] is False
    assert sum(cell["num_errors"] for cell in found["cells"]) == 1


def test_a_row_that_found_no_memory_before_is_replaced_by_one_that_ran(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    """The part that ran it goes, so that the folder's own file must have its row."""
    folder = parts_of(made, NEEDLES, cli)
    shutil.copytree(folder / "parts", tmp_path / "e")
    header, row, *_ = min((tmp_path / "e").iterdir()).read_text().splitlines()
    lost = {**json.loads(row), **dict.fromkeys(MEASURED), "error": "no memory"}
    (tmp_path / "e" / "trials.jsonl").write_text(f"{header}\n{json.dumps(lost)}\n")
    assert cli("eval", "merge", "e").code == 0
    kept = {row["trial"]: row for row in rows(tmp_path / "e" / "trials.jsonl")[1:]}
    assert kept == {row["trial"]: row for row in rows(folder / "one" / "trials.jsonl")[1:]}
    assert cli("eval", "merge", "e", "--json").code == 0
    assert json.loads((tmp_path / "e" / "summary.json").read_text())["is_complete"] is True


def test_a_run_that_is_replaced_leaves_no_parts_behind(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    shutil.copytree(parts_of(made, NEEDLES, cli) / "parts", tmp_path / "e")
    assert cli(*NEEDLES, "--seed", "1", "-o", "old", "--shard", "1/2").code == 0
    assert cli("eval", "merge", "e", "-o", "old").code == 10
    assert cli("eval", "merge", "e", "-o", "old", "--overwrite").code == 0
    assert list((tmp_path / "old").glob("*.shard-*")) == []
    assert cli("eval", "merge", "old").code == 0


def test_a_missing_part_is_named_and_nothing_is_written(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    shutil.copytree(parts_of(made, NEEDLES, cli) / "parts", tmp_path / "e")
    (tmp_path / "e" / "trials.shard-2-of-3.jsonl").unlink()
    before = {path.name for path in (tmp_path / "e").iterdir()}
    done = cli("eval", "merge", "e")
    assert done.code == 9
    assert "of 8 trials are missing" in done.err
    assert "there is nothing of part 2/3" in done.err
    assert {path.name for path in (tmp_path / "e").iterdir()} == before


def test_a_folder_where_another_process_collects_is_refused(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    shutil.copytree(parts_of(made, NEEDLES, cli) / "parts", tmp_path / "e")
    part = contents(tmp_path / "e" / "trials.shard-1-of-3.jsonl")
    with Journal.start(tmp_path / "e" / "trials.jsonl", part.plan, frame=part.frame):
        done = cli("eval", "merge", "e")
    assert done.code == 9
    assert "another process is writing e/trials.jsonl" in done.err
    assert len(list((tmp_path / "e").glob("*.shard-*"))) == 3


def test_a_part_of_another_plan_is_refused(tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]) -> None:
    shutil.copytree(parts_of(made, NEEDLES, cli) / "parts", tmp_path / "e")
    assert cli(*NEEDLES, "--seed", "1", "-o", "other", "--shard", "2/3").code == 0
    shutil.copy(tmp_path / "other" / "trials.shard-2-of-3.jsonl", tmp_path / "e")
    done = cli("eval", "merge", "e")
    assert done.code == 9
    assert "e/trials.shard-2-of-3.jsonl is of another plan" in done.err
    assert "plan.seed: 0 -> 1" in done.err


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"prompt": "another"}, "its prompt is 'another'"),
        ({"exact_match": 1}, "its exact_match is 1"),
        ({"trial": "reasoning-00@1@0|full|-"}, "has no such trial"),
    ],
)
def test_a_damaged_row_is_named_with_its_file(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path], change: dict[str, Any], told: str
) -> None:
    shutil.copytree(parts_of(made, NEEDLES, cli) / "parts", tmp_path / "e")
    path = tmp_path / "e" / "trials.shard-1-of-3.jsonl"
    header, row, *others = path.read_text().splitlines()
    path.write_text("\n".join([header, json.dumps(json.loads(row) | change), *others]) + "\n")
    with pytest.raises(FileFormatError, match=rf"trials\.shard-1-of-3\.jsonl: damaged trial .*{told}"):
        merged_run([tmp_path / "e"])


@pytest.mark.parametrize(
    ("command", "change", "told"),
    [
        (NEEDLES, {"policy": "h2o"}, r"its policy and budget are 'h2o\|"),
        (NEEDLES, {"policy": 5}, "its policy is 5, need a text"),
        (NEEDLES, {"budget": 63}, r"its policy and budget are 'snapkv\|63'"),
        (NEEDLES, {"budget": "32"}, "its budget is '32', need a whole number"),
        (NEEDLES, {"scores": "random"}, r"its policy and budget are 'snapkv \(random\)\|"),
        (NEEDLES, {"scores": "real"}, "its scores are 'real', which is not what 'snapkv' goes by"),
        (NEEDLES, {"scores": []}, r"its scores is \[\], need one of None, real"),
        (NEEDLES, {"kv_cache_dtype": "int8"}, r"its policy and budget are 'snapkv int8\|"),
        (NEEDLES, {"query_agnostic": True}, "its query_agnostic is True"),
        (NEEDLES, {"length": 999}, "its needle, length and depth are '[^']*@999@"),
        (NEEDLES, {"length": None}, "its length is None"),
        (NEEDLES, {"depth": 7.5}, "its needle, length and depth are '[^']*@7.5'"),
        (NEEDLES, {"depth": "0"}, "its depth is '0'"),
        (NEEDLES, {"needle": "another"}, "its needle, length and depth are 'another@"),
        (NEEDLES, {"prompt_tokens": None}, "its prompt_tokens is None"),
        (TASK, {"policy": "h2o"}, r"its policy and budget are 'h2o\|"),
        (TASK, {"set": "ruler:none"}, "its set is 'ruler:none', need one of ruler:"),
        (TASK, {"set": []}, r"its set is \[\], need one of ruler:"),
        (TASK, {"metric": "qa_f1"}, "its metric is 'qa_f1', need one of string_match"),
        (TASK, {"cluster": 1}, "its cluster is 1, need a text"),
        (TASK, {"cut_tokens": -1}, "its cut_tokens is -1"),
    ],
)
def test_a_row_that_is_not_of_the_cell_that_its_trial_names_is_refused(
    tmp_path: Path,
    cli: RunCli,
    made: dict[tuple[str, ...], Path],
    command: tuple[str, ...],
    change: dict[str, Any],
    told: str,
) -> None:
    """Without the model a row's own fields say which cell it goes into: they must not say another than its id."""
    shutil.copytree(parts_of(made, command, cli) / "parts", tmp_path / "e")
    path = min((tmp_path / "e").iterdir())
    header, *found = map(json.loads, path.read_text().splitlines())
    row = next(row for row in found if row["policy"] == "snapkv")
    row.update(change)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in [header, *found]))
    done = cli("eval", "merge", "e")
    assert done.code == 3, done.err
    assert re.search(told, done.err)
    assert len(list((tmp_path / "e").iterdir())) == 3  # the parts stay, and nothing is written


def test_a_damaged_row_of_a_trial_that_two_files_hold_is_named_with_its_own_file(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    folder = parts_of(made, NEEDLES, cli)
    shutil.copytree(folder / "one", tmp_path / "a")
    shutil.copytree(folder / "parts", tmp_path / "b")
    path = min((tmp_path / "b").iterdir())
    header, row, *others = path.read_text().splitlines()
    path.write_text("\n".join([header, json.dumps(json.loads(row) | {"answer_f1": 7}), *others]) + "\n")
    done = cli("eval", "merge", "a", "b", "-o", "c")
    assert done.code == 3
    assert f"b/{path.name}: damaged trial" in done.err


def test_folders_without_rows_with_both_kinds_and_several_without_output_are_refused(
    tmp_path: Path, cli: RunCli, made: dict[tuple[str, ...], Path]
) -> None:
    for command in (NEEDLES, TASK):
        shutil.copytree(parts_of(made, command, cli) / "parts", tmp_path / "e", dirs_exist_ok=True)
    (tmp_path / "empty").mkdir()
    for arguments, told in [
        (["e"], "both trials.jsonl and rows.jsonl"),
        (["empty"], "empty: no trials.jsonl or rows.jsonl of an evaluation there"),
        (["nowhere"], "nowhere: no trials.jsonl"),
        (["e", "empty"], "2 folders are given: name the one to write with -o"),
    ]:
        done = cli("eval", "merge", *arguments)
        assert done.code == 2, done.err
        assert told in done.err


@pytest.mark.parametrize("record", [{}, {"stated": {}, "prompts": [1], "answers": []}, {"stated": 1}])
def test_what_is_no_frame_is_refused(record: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="not what an evaluation knows beforehand"):
        EvaluationFrame.of_record(record)

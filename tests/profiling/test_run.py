"""A whole scoring run on the bundled model: files, resuming after a kill, sameness."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import headprobe
from headprobe.errors import FileAccessError, NoPassingTrialError, OptionError, OutputExistsError, ResumeError
from headprobe.models.loading import load_model
from headprobe.profiling.estimators import ESTIMATORS
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.preflight import output_paths
from headprobe.profiling.run import score
from headprobe.scores.score_file import write_score_file
from tests.conftest import ROOT
from tests.fork_server import Child, ForkServer
from tests.tiny_models import build_tiny_model

SMALL = ScoreOptions(lengths=(200, 256), depths=3, needles_per_cell=1)
GRID = ["--lengths", "256,400,512", "--depths", "5"]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


def payload(path: Path) -> dict[str, Any]:
    """A score file without what may differ between two runs of the same plan."""
    content = json.loads(path.read_bytes())
    return {key: value for key, value in content.items() if key not in ("created_at", "environment")}


def wait_for_trials(journal: Path, number: int, process: Child) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > number:
            return
        time.sleep(0.002)
    raise AssertionError(f"the run ended or hung before {number} trials: {process.err}")


def test_the_same_seed_gives_the_same_file(tmp_path: Path, demo: Any) -> None:
    for name in ("first.json", "second.json"):
        score(demo, SMALL, output=tmp_path / name)
    assert payload(tmp_path / "first.json") == payload(tmp_path / "second.json")


def test_another_seed_gives_other_trials(tmp_path: Path, demo: Any) -> None:
    first = score(demo, SMALL, output=tmp_path / "a.json").scores["r2"]
    other = score(demo, ScoreOptions(**{**vars(SMALL), "seed": 1}), output=tmp_path / "b.json").scores["r2"]
    assert [t.id for t in first.trials] != [t.id for t in other.trials]


@pytest.mark.parametrize("trials_before_the_kill", [1, pytest.param(7, marks=pytest.mark.slow)])
def test_a_killed_run_resumes_to_the_same_file(tmp_path: Path, server: ForkServer, trials_before_the_kill: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    assert server.fork("score", *GRID, folder=whole).wait() == 0
    process = server.fork("score", *GRID, folder=killed)
    journal = killed / "scores" / "demo--r2.journal"
    wait_for_trials(journal, trials_before_the_kill, process)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    finished = journal.read_bytes().count(b"\n") - 1
    assert finished >= trials_before_the_kill
    assert not (killed / "scores" / "demo--r2.json").exists()
    assert server.fork("score", *GRID, "--resume", folder=killed).wait() == 0
    assert bare_bytes(killed / "scores" / "demo--r2.json") == bare_bytes(whole / "scores" / "demo--r2.json")
    assert not journal.exists()


def bare_bytes(path: Path) -> bytes:
    """The file's bytes without the line of its date, without what was typed and without how long it took."""
    text = re.sub(rb'"created_at": ?"[^"]*"', b"", path.read_bytes())
    text = re.sub(rb'"stages": ?\{[^}]*\}', b"", text)
    return re.sub(rb'"command": ?"[^"]*"', b"", text)


def test_resuming_keeps_what_the_journal_holds(tmp_path: Path, demo: Any) -> None:
    path, journal = tmp_path / "s.json", tmp_path / "s.journal"

    def stop_after_two(record: dict[str, Any]) -> None:
        if journal.read_bytes().count(b"\n") == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(demo, SMALL, output=path, on_trial=stop_after_two)
    header, first, second = journal.read_bytes().splitlines()
    marked = {**json.loads(first), "response": "kept from before"}
    journal.write_bytes(b"\n".join([header, json.dumps(marked).encode(), second, b""]))
    resumed = score(demo, SMALL, output=path, resume=True).scores["r2"]
    assert [t.response for t in resumed.trials].count("kept from before") == 1


def test_an_overwriting_run_that_was_killed_resumes_with_overwrite(tmp_path: Path, demo: Any) -> None:
    path = tmp_path / "s.json"
    path.write_text("old")

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(demo, SMALL, output=path, overwrite=True, on_trial=stop)
    with pytest.raises(OutputExistsError, match=r"add --overwrite to --resume \(5 of 6 trials are left\)"):
        score(demo, SMALL, output=path, resume=True)
    records: list[dict[str, Any]] = []
    score(demo, SMALL, output=path, resume=True, overwrite=True, on_trial=records.append)
    assert len(records) == 5
    assert headprobe.load_scores(path).num_trials == 6


def test_an_interrupt_ends_with_130_and_keeps_the_journal(tmp_path: Path, server: ForkServer) -> None:
    process = server.fork("score", *GRID, "--needles-per-cell", "20")  # long enough to be caught at work
    journal = tmp_path / "scores" / "demo--r2.journal"
    wait_for_trials(journal, 2, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    assert "Traceback" not in process.err
    assert journal.read_bytes().count(b"\n") >= 3


def test_a_changed_plan_is_refused_with_the_difference(tmp_path: Path, demo: Any) -> None:
    path = tmp_path / "s.json"

    def stop(record: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(demo, SMALL, output=path, on_trial=stop)
    with pytest.raises(ResumeError, match=r"differs in plan.lengths: \[200, 256\] -> \[300\]: use"):
        score(demo, ScoreOptions(**{**vars(SMALL), "lengths": (300,)}), output=path, resume=True)
    with pytest.raises(OutputExistsError, match="holds an unfinished run"):
        score(demo, SMALL, output=path)
    assert score(demo, SMALL, output=path, resume=True).scores["r2"].num_trials == 6


def test_a_run_killed_between_its_file_and_its_journals_end_resumes(tmp_path: Path, demo: Any) -> None:
    path = tmp_path / "s.json"
    keep: dict[str, bytes] = {}

    def copy_journal(record: dict[str, Any]) -> None:
        keep["journal"] = (tmp_path / "s.journal").read_bytes()

    score(demo, SMALL, output=path, on_trial=copy_journal)
    written = path.read_bytes()
    (tmp_path / "s.journal").write_bytes(keep["journal"])
    score(demo, SMALL, output=path, resume=True)
    assert path.read_bytes() == written
    assert not (tmp_path / "s.journal").exists()


def test_an_output_that_cannot_be_written_is_told_before_the_work(tmp_path: Path, demo: Any) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileAccessError, match=r"cannot write .*file/s.journal: (File exists|Not a directory)"):
        score(demo, SMALL, output=tmp_path / "file" / "s.json")


def test_an_existing_file_is_kept_unless_overwritten(tmp_path: Path, demo: Any) -> None:
    path = tmp_path / "s.json"
    path.write_text("mine")
    with pytest.raises(OutputExistsError, match="s.json already exists; --overwrite replaces it"):
        score(demo, SMALL, output=path)
    assert path.read_text() == "mine"
    score(demo, SMALL, output=path, overwrite=True)
    assert headprobe.load_scores(path).num_trials == 6


def test_several_methods_in_one_pass_equal_each_alone(tmp_path: Path, demo: Any) -> None:
    options = {**vars(SMALL), "needles": "reasoning"}
    together = score(demo, ScoreOptions(**{**options, "methods": ("r2", "retrieval", "value")}), output=f"{tmp_path}/")
    for name, scores in together.scores.items():
        alone = score(demo, ScoreOptions(**{**options, "methods": (name,)}), output=tmp_path / f"alone-{name}.json")
        np.testing.assert_array_equal(scores.passing_scores, alone.scores[name].passing_scores)
    assert sorted(p.name for p in tmp_path.glob("demo*")) == [
        "demo--r2.json", "demo--retrieval.json", "demo--value.json",
    ]  # fmt: skip


def test_a_limit_takes_trials_from_the_whole_grid(tmp_path: Path, demo: Any) -> None:
    scores = score(demo, ScoreOptions(**{**vars(SMALL), "limit": 4}), output=tmp_path / "s.json").scores["r2"]
    assert scores.num_trials == 4
    assert {t.length for t in scores.trials} == {200, 256}


def test_no_passing_trial_is_an_error_with_three_answers_and_no_file(tmp_path: Path) -> None:
    folder = build_tiny_model("llama", tmp_path)
    with pytest.raises(NoPassingTrialError, match=r"answered none of 6 trials .*; it said: (\S+: .*){3}") as caught:
        score(str(folder), ScoreOptions(**{**vars(SMALL), "lengths": (500, 512)}), output=tmp_path / "s.json")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "s.json").exists()


def test_contrast_is_refused_for_needles_without_distractors(tmp_path: Path, demo: Any) -> None:
    with pytest.raises(OptionError, match="method 'contrast' needs needles with a distractor"):
        score(demo, ScoreOptions(**{**vars(SMALL), "methods": ("contrast",), "needles": "retrieval"}))


def test_the_file_says_what_was_measured(tmp_path: Path, demo: Any) -> None:
    score(demo, SMALL, output=tmp_path / "s.json")
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["probes"]["lengths"] == [200, 256]
    assert content["probes"]["needles"]["name"] == "reasoning"
    assert content["probes"]["haystack"]["repeats"] > 0
    assert content["method"]["parameters"]["gate"]["threshold"] == 0.5


def test_the_file_names_no_folder_of_this_machine(tmp_path: Path, server: ForkServer) -> None:
    shutil.copy(ROOT / "needles" / "reasoning.jsonl", tmp_path / "mine.jsonl")
    shutil.copytree(ROOT / "headprobe" / "models" / "bundled", tmp_path / "model")
    (tmp_path / "text").mkdir()
    shutil.copy(ROOT / "haystacks" / "README.md", tmp_path / "text" / "a.md")
    arguments = [f"--model={tmp_path}/model", "--needles", f"{tmp_path}/mine.jsonl", "--haystack", f"{tmp_path}/text"]
    done = server.fork("score", *GRID, *arguments, "-o", f"{tmp_path}/s.json", "--limit", "3")
    assert done.wait() == 0, done.err
    text = (tmp_path / "s.json").read_text()
    assert str(tmp_path) not in text
    assert "--model model --needles mine.jsonl --haystack text" in json.loads(text)["environment"]["command"]


def test_one_file_for_two_methods_is_refused() -> None:
    with pytest.raises(OptionError, match="2 methods cannot share the file 'x.json'"):
        output_paths("demo", ["r2", "value"], "x.json")


def test_a_folder_takes_a_file_for_each_method() -> None:
    wanted = {m: Path(f"new/demo--{m}.json") for m in ("r2", "value")}
    assert output_paths("demo", ["r2", "value"], "new") == wanted
    assert output_paths("demo", ["r2"], "new/") == {"r2": wanted["r2"]}


def test_a_model_folder_gives_its_last_part_to_the_files_name(tmp_path: Path) -> None:
    assert output_paths(str(tmp_path), ["r2"], None) == {"r2": Path(f"scores/{tmp_path.name}--r2.json")}
    assert output_paths("org/name", ["r2"], None) == {"r2": Path("scores/org--name--r2.json")}


def test_prompts_of_the_bundled_model_are_those_of_version_1_and_methods_those_of_2(demo: Any) -> None:
    known = {
        "reasoning": "6fcf1794b899d3a1a6a6118fc039a609c13d8591484a922a9422ddfe4673034f",
        "retrieval": "72cbec7c4f25d4498dc3ca24b1220897a6281612b49a716859fe69d68d503b87",
    }
    for needles, digest in known.items():
        prepared = prepare(demo, ScoreOptions(needles=needles, lengths=(150, 256, 700), depths=5))
        assert prepared.description(demo)["prompts_sha256"] == digest
    first = ("r2", "retrieval", "enhanced", "contrast", "value")
    assert {name: ESTIMATORS[name].version for name in ESTIMATORS} == {
        name: 2 if name in first else 1 for name in ESTIMATORS
    }


def test_every_trial_says_where_its_needle_really_stood(tmp_path: Path, demo: Any) -> None:
    score(demo, SMALL, output=tmp_path / "s.json")
    reached = {p.trial_id: p.depth_reached for p in prepare(demo, SMALL).prompts}
    read = headprobe.load_scores(tmp_path / "s.json")
    assert {t.id: t.extra["depth_reached"] for t in read.trials} == reached
    assert any(t.extra["depth_reached"] != t.depth for t in read.trials)


def test_a_file_whose_trials_do_not_say_it_is_still_read(tmp_path: Path, demo: Any) -> None:
    scores = score(demo, SMALL, output=tmp_path / "s.json").scores["r2"]
    old = [replace(t, extra={k: v for k, v in t.extra.items() if k != "depth_reached"}) for t in scores.trials]
    path = write_score_file(tmp_path / "old.json", replace(scores, trials=tuple(old)))
    assert b"depth_reached" not in path.read_bytes()
    assert headprobe.load_scores(path).num_trials == 6

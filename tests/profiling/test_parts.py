"""Parts of a scoring run that are put together from their journals alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import (
    FileFormatError,
    NoPassingTrialError,
    OptionError,
    OutputExistsError,
    ResumeError,
)
from headprobe.models.loading import load_model
from headprobe.profiling.gathering import ScoreFrame
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.journal import Journal, contents
from headprobe.profiling.run import merge_parts, score
from headprobe.profiling.shards import Shard, absent_parts, joined, shard_journals

SMALL: dict[str, Any] = {"lengths": (160, 200), "depths": 2, "needles_per_cell": 1}


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def parts(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the journals of three parts, and `whole.json` of one process."""
    folder = tmp_path_factory.mktemp("parts")
    for part in (1, 2, 3):
        score(demo, ScoreOptions(**SMALL, shard=Shard(part, 3)), output=folder / "a.json")
    score(demo, ScoreOptions(**SMALL), output=folder / "whole.json")
    return folder


def journals(folder: Path) -> list[Path]:
    return shard_journals(folder / "a.journal")


def bare(path: Path) -> dict[str, Any]:
    """A score file without what differs from run to run."""
    file = json.loads(path.read_text())
    del file["created_at"], file["environment"]
    return file


def copied(parts: Path, tmp_path: Path) -> list[Path]:
    return [Path(shutil.copy(path, tmp_path)) for path in journals(parts)]


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def rewritten(path: Path, objects: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each, separators=(",", ":")) + "\n" for each in objects))
    return path


def test_the_journals_of_all_parts_give_the_file_of_one_process(parts: Path, tmp_path: Path) -> None:
    before = [path.read_bytes() for path in journals(parts)]
    for order in (journals(parts), journals(parts)[::-1]):
        run, paths = merge_parts(order, tmp_path / "merged.json", overwrite=True)
        assert paths == {"r2": tmp_path / "merged.json"}
        assert run.scores["r2"].num_trials == 4
        assert bare(tmp_path / "merged.json") == bare(parts / "whole.json")
    assert [path.read_bytes() for path in journals(parts)] == before


def test_versions_and_device_are_those_of_the_run(parts: Path, tmp_path: Path) -> None:
    merge_parts(journals(parts), tmp_path / "merged.json")
    found, whole = (json.loads(p.read_text())["environment"] for p in (tmp_path / "merged.json", parts / "whole.json"))
    assert {k: v for k, v in found.items() if k != "stages"} == {k: v for k, v in whole.items() if k != "stages"}


def test_several_methods_on_several_kinds_of_prompts_and_no_trial_scores(demo: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "methods": ("retrieval", "induction"), "with_trial_scores": False}
    score(demo, ScoreOptions(**options), output=tmp_path / "whole")
    for part in (1, 2):
        score(demo, ScoreOptions(**options, shard=Shard(part, 2)), output=tmp_path / "parts")
    _, paths = merge_parts(shard_journals(tmp_path / "parts" / "demo--retrieval+1.journal"), tmp_path / "merged")
    assert [path.name for path in paths.values()] == ["demo--retrieval.json", "demo--induction.json"]
    for path in paths.values():
        assert bare(path) == bare(tmp_path / "whole" / path.name)


def test_published_steps_stay_those(demo: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {**SMALL, "methods": ("retrieval",), "steps": "published"}
    score(demo, ScoreOptions(**options), output=tmp_path / "whole.json")
    for part in (1, 2):
        score(demo, ScoreOptions(**options, shard=Shard(part, 2)), output=tmp_path / "a.json")
    merge_parts(journals(tmp_path), tmp_path / "merged.json")
    assert bare(tmp_path / "merged.json") == bare(tmp_path / "whole.json")


def test_a_missing_part_is_named(parts: Path, tmp_path: Path) -> None:
    told = r"of 4 trials are missing, the first is '.+': by the names of the files there is nothing of part 2/3;"
    with pytest.raises(ResumeError, match=told):
        merge_parts([journals(parts)[0], journals(parts)[2]], tmp_path / "merged.json")
    assert not (tmp_path / "merged.json").exists()


def test_a_part_that_is_not_finished_is_refused(parts: Path, tmp_path: Path) -> None:
    first, *others = copied(parts, tmp_path)
    header, *trials = lines(first)
    rewritten(first, [header, *trials[:-1]])
    with pytest.raises(ResumeError, match=f"1 of 4 trials are missing, .*{trials[-1]['trial']}.* is not finished"):
        merge_parts([first, *others], tmp_path / "merged.json")


def test_a_line_cut_short_is_a_missing_trial_unless_another_part_has_it(parts: Path, tmp_path: Path) -> None:
    first, *others = copied(parts, tmp_path)
    whole = first.read_bytes()
    first.write_bytes(whole[:-9])
    with pytest.raises(ResumeError, match="1 of 4 trials are missing"):
        merge_parts([first, *others], tmp_path / "merged.json")
    again = tmp_path / "again.journal"
    again.write_bytes(whole)
    merge_parts([first, *others, again], tmp_path / "merged.json")
    assert bare(tmp_path / "merged.json") == bare(parts / "whole.json")


def test_of_a_trial_that_found_no_memory_and_one_that_ran_the_latter_counts(parts: Path, tmp_path: Path) -> None:
    first, *others = copied(parts, tmp_path)
    header, *trials = lines(first)
    skipped = {"trial": trials[0]["trial"], "skipped": "no memory"}
    for name, order in (("a", [skipped, trials[0]]), ("b", [trials[0], skipped])):
        path = rewritten(tmp_path / f"{name}.journal", [header, *order[:1]])
        other = rewritten(tmp_path / f"{name}-2.journal", [header, *order[1:], *trials[1:]])
        merge_parts([path, other, *others], tmp_path / f"{name}.json")
        assert bare(tmp_path / f"{name}.json") == bare(parts / "whole.json")


def test_a_trial_that_found_no_memory_anywhere_is_stated_as_skipped(parts: Path, tmp_path: Path) -> None:
    first, *others = copied(parts, tmp_path)
    header, *trials = lines(first)
    rewritten(first, [header, {"trial": trials[0]["trial"], "skipped": "no memory"}, *trials[1:]])
    run, _ = merge_parts([first, *others], tmp_path / "merged.json")
    assert run.skipped == {trials[0]["trial"]: "no memory"}
    file = json.loads((tmp_path / "merged.json").read_text())
    assert file["probes"]["skipped"] == [{"id": trials[0]["trial"], "reason": "no memory"}]
    assert len(file["trials"]) == 3


def test_parts_of_different_plans_are_refused(demo: Any, parts: Path, tmp_path: Path) -> None:
    score(demo, ScoreOptions(**SMALL, seed=1, shard=Shard(3, 3)), output=tmp_path / "b.json")
    other = shard_journals(tmp_path / "b.journal")[0]
    with pytest.raises(ResumeError, match=r"b\.shard-3-of-3.*another plan.*differs in plan.seed: 0 -> 1"):
        merge_parts([*journals(parts)[:2], other], tmp_path / "merged.json")


def test_a_journal_that_states_no_frame_is_refused(demo: Any, tmp_path: Path) -> None:
    path = tmp_path / "old.journal"
    with Journal.start(path, prepare(demo, ScoreOptions(**SMALL)).description(demo)):
        pass
    with pytest.raises(FileFormatError, match=r"old\.journal: this journal does not state what a merge needs"):
        merge_parts([path], tmp_path / "merged.json")


@pytest.mark.parametrize(
    "change",
    [
        lambda frame: frame.pop("geometry"),
        lambda frame: frame["geometry"].pop("head_dim"),
        lambda frame: frame.update(trials=[]),
        lambda frame: frame.update(trials={}),
        lambda frame: frame["provenance"]["needles"].pop("model"),
        lambda frame: frame["trials"]["needles"].append(["too", "short"]),
    ],
)
def test_a_damaged_frame_is_one_line(parts: Path, tmp_path: Path, change: Any) -> None:
    first = copied(parts, tmp_path)[0]
    header, *trials = lines(first)
    change(header["frame"])
    rewritten(first, [header, *trials])
    with pytest.raises(FileFormatError, match=r"1-of-3\.journal:1: not what a scoring run knows beforehand"):
        merge_parts([first], tmp_path / "merged.json")


def test_a_damaged_trial_is_named_with_its_file(parts: Path, tmp_path: Path) -> None:
    first, second, third = copied(parts, tmp_path)
    header, *trials = lines(second)
    trials[0]["f1"] = 2
    rewritten(second, [header, *trials])
    with pytest.raises(FileFormatError, match=r"2-of-3\.journal: damaged trial .* its f1 is 2, need a number from 0"):
        merge_parts([first, second, third], tmp_path / "merged.json")


def test_nothing_is_replaced_unasked(parts: Path, tmp_path: Path) -> None:
    (tmp_path / "merged.json").write_text("mine")
    with pytest.raises(OutputExistsError):
        merge_parts(journals(parts), tmp_path / "merged.json")
    assert (tmp_path / "merged.json").read_text() == "mine"
    first = copied(parts, tmp_path)[0]
    with pytest.raises(OptionError, match="input 1"):
        merge_parts([first, *journals(parts)[1:]], first, overwrite=True)


def test_a_run_without_a_passing_trial_says_what_the_model_said(parts: Path, tmp_path: Path) -> None:
    changed = []
    for path in copied(parts, tmp_path):
        header, *trials = lines(path)
        changed.append(rewritten(path, [header, *({**t, "deciding_words": 0.0} for t in trials)]))
    with pytest.raises(NoPassingTrialError, match="answered none of 4 trials"):
        merge_parts(changed, tmp_path / "merged.json")


def test_a_frame_is_read_as_it_was_written(demo: Any) -> None:
    frame = ScoreFrame.of(demo, prepare(demo, ScoreOptions(**SMALL, methods=("r2", "qr"))), "headprobe score")
    again = ScoreFrame.of_record(json.loads(json.dumps(frame.record())))
    assert again.record() == frame.record()
    assert again.trials == frame.trials
    assert again.provenance == frame.provenance


def test_no_journal_and_no_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no journal"):
        joined([])
    (tmp_path / "notes.journal").write_text("notes\n")
    with pytest.raises(FileFormatError, match=r"notes\.journal:1: not a headprobe-journal/1 journal"):
        contents(tmp_path / "notes.journal")


def test_absent_parts_are_known_by_name_where_all_agree_in_number() -> None:
    named = [Path(f"x/a.shard-{part}-of-4.jsonl") for part in (1, 4)]
    assert absent_parts(named) == ["2/4", "3/4"]
    assert absent_parts([*named, Path("a.jsonl")]) == ["2/4", "3/4"]
    assert absent_parts([*named, Path("a.shard-1-of-2.jsonl")]) == []
    assert absent_parts([Path("a.jsonl")]) == []

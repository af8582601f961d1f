"""Where a scoring run writes, before it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from headprobe.errors import FileAccessError, OptionError, OutputExistsError
from headprobe.profiling.preflight import check_outputs, journal_path


def check(output: str, **more: object) -> None:
    check_outputs({"r2": Path(output)}, **({"resume": False, "overwrite": False} | more))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["q.journal", "Q.JOURNAL", "x/../q.journal"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_with_the_journals_name_is_refused(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / "q.journal").write_text("my notes")
    with pytest.raises(OptionError, match=r"the output \S+ and the run's journal \S+ are the same file"):
        check(name, overwrite=overwrite)
    assert (tmp_path / "q.journal").read_text() == "my notes"


@pytest.mark.parametrize("prompts", ["a.json", "./a.json", "a.journal", "A.json", "link"])
def test_prompts_in_the_place_of_another_output_are_refused(tmp_path: Path, prompts: str) -> None:
    (tmp_path / "link").symlink_to("a.json")
    with pytest.raises(OptionError, match=r"and --dump-prompts \S+ are the same file: give each its own name"):
        check("a.json", prompts=Path(prompts), overwrite=True)


def test_several_methods_whose_journal_is_one_of_their_files_are_refused() -> None:
    paths = {"r2": Path("a.json"), "value": Path("a+1.journal")}
    with pytest.raises(OptionError, match=r"the output of value a\+1.journal and the run's journal a\+1.journal"):
        check_outputs(paths, resume=False, overwrite=True)


def test_a_run_does_not_write_over_what_it_reads(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    with pytest.raises(OptionError, match="--dump-prompts mine.jsonl and --needles mine.jsonl are the same file"):
        check("a.json", prompts=Path("mine.jsonl"), overwrite=True, inputs={"--needles": "mine.jsonl"})


@pytest.mark.parametrize("overwrite", [False, True])
def test_notes_with_the_journals_name_stay(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "q.journal").write_text("my notes")
    with pytest.raises(OutputExistsError, match="q.journal exists but is not a journal of a run"):
        check("q.json", overwrite=overwrite)
    assert (tmp_path / "q.journal").read_text() == "my notes"


@pytest.mark.parametrize("stem", ["x" * 250, "中" * 83 + "x", "x" * 247])
def test_a_long_name_has_a_journal_of_its_own_that_can_be_written(tmp_path: Path, stem: str) -> None:
    check(f"{stem}.json")
    first, other = journal_path({"r2": Path(f"{stem}.json")}), journal_path({"r2": Path(f"{stem[:-1]}y.json")})
    assert first != other
    assert max(len(path.name.encode()) for path in (first, other)) <= 255
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_is_too_long_is_refused_before_the_run() -> None:
    with pytest.raises(FileAccessError, match="a name of 256 bytes is too long, the limit is 255"):
        check("x" * 251 + ".json")


@pytest.mark.parametrize(
    ("there", "advice"),
    [
        (["r2", "value", "mass"], "r2.json exists, that run is complete: nothing is left to resume"),
        (["value"], "value.json exists and there is no journal to resume: score what is missing with --method r2,mass"),
    ],
)
def test_resuming_without_a_journal_says_which_methods_are_missing(
    tmp_path: Path, there: list[str], advice: str
) -> None:
    paths = {method: Path(f"{method}.json") for method in ("r2", "value", "mass")}
    for method in there:
        paths[method].write_text("{}")
    with pytest.raises(OutputExistsError, match=advice):
        check_outputs(paths, resume=True, overwrite=False)
    check_outputs({"contrast": Path("contrast.json")}, resume=True, overwrite=False)

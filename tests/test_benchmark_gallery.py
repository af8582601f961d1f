"""The gallery and the runs on real models: commands that headprobe takes, tables that say what the files say."""

from __future__ import annotations

import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from benchmarks import gallery, real_models
from benchmarks.gallery import EXHIBITS, Exhibit, Run, fill, tables
from benchmarks.steps import Step, run_all
from headprobe.cli import app
from headprobe.models.catalog import CATALOG, bundled_model_folder
from headprobe.probes.needle import load_needles
from headprobe.scores.causal import CAUSAL
from headprobe.scores.score_file import read_score_file, write_score_file
from headprobe.scores.validation import validate_file
from tests.scores.test_causal import result as knockout_result

DEMO = Exhibit("demo", "demo", (Run(gallery.ALL_METHODS, "reasoning", 1, "512"),), (10, 10))


def parsed(step: Step) -> dict[str, Any]:
    """The options of a step as its command understands them; Typer refuses what it does not know."""
    command: Any = typer.main.get_command(app)
    arguments, context = list(step.arguments), None
    while hasattr(command, "commands"):
        with command.make_context(None, arguments, parent=context) as context:
            name, command, arguments = command.resolve_command(context, [*context._protected_args, *context.args])
    with command.make_context(name, arguments, parent=context) as own:
        return dict(own.params)


def test_steps_of_the_gallery_are_commands(tmp_path: Path) -> None:
    for exhibit in EXHIBITS:
        found = [parsed(step) for step in gallery.steps(tmp_path, tmp_path / "evals", exhibit)]
        scored = [each for each in found if each.get("method")]
        assert {each["model"] for each in scored} == {exhibit.model}
        assert sorted(",".join(each["method"] for each in scored).split(",")) == sorted(gallery.ALL_METHODS)
        assert all(len(load_needles(each["needles"])) > 30 for each in scored)
        assert sum(each.get("write") is True for each in found) == 2
    assert {exhibit.model for exhibit in EXHIBITS} <= {entry.alias for entry in CATALOG}


def test_steps_on_real_models_are_commands(tmp_path: Path) -> None:
    for subject in real_models.SUBJECTS:
        named = dict(real_models.steps(subject, tmp_path, tmp_path / "data", "auto"))
        assert parsed(named["needles"])["policies"] == "all"
        assert parsed(named["needles-gqa-max"])["gqa"] == "max"
        assert parsed(named["tune"])["keep"] == 0.8
        assert {sample.name for sample in subject.tasks} <= set(named)
        assert [parsed(named[sample.name])["limit"] for sample in subject.tasks] == [s.limit for s in subject.tasks]
        assert len(parsed(named["referee"])["scores"]) == len(gallery.ALL_METHODS) == 11
        without_data = set(dict(real_models.steps(subject, tmp_path, None, "auto")))
        far = set() if subject.far is None else {"needles-far"}
        assert without_data == {"needles", "needles-gqa-max", "tune", "referee", "bench"} | far
        assert all(parsed(named[name])["lengths"] == subject.far for name in far)


def test_tables_say_what_the_files_say(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    for method in ("r2", "retrieval", "echo"):
        shutil.copy(bundled_model_folder() / "scores" / f"demo--{method}.json", tmp_path / "demo")
    made = tables(tmp_path, (DEMO, replace(DEMO, model="absent")))
    assert list(made) == ["scores demo", "agreement demo"]
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in made["scores demo"].splitlines()[2:]]
    assert [row[0] for row in rows] == ["`r2`", "`retrieval`", "`echo`"]
    assert rows[0][1] == "99/100"
    assert rows[0][4] == "not known"  # the shipped files hold no scores of single trials
    assert rows[0][2].startswith("5-4 0.94, ")
    head, _, first, second = made["agreement demo"].splitlines()
    assert head == "| | `retrieval` | `echo` |"
    assert first.startswith("| `r2` | 0.")
    assert second.startswith("| `retrieval` |  | ")


def test_pictures_and_reports_of_the_gallery_can_be_made_of_its_files(tmp_path: Path) -> None:
    place = tmp_path / "demo"
    place.mkdir()
    found = [step for step in gallery.steps(tmp_path, tmp_path, DEMO) if step.arguments[0] in ("heatmap", "report")]
    for scores in {path for step in found for path in step.needs}:
        shutil.copy(bundled_model_folder() / "scores" / "demo--r2.json", scores)
    pictures, reports = ([step for step in found if step.arguments[0] == kind] for kind in ("heatmap", "report"))
    assert run_all([pictures[0], *reports]) is None
    made = [path for step in (pictures[0], *reports) for path in step.results]
    assert sorted(path.name for path in made) == ["demo--r2.png", "report-reasoning.html", "report-retrieval.html"]
    assert all(path.stat().st_size > 1000 for path in made)
    assert {path for step in reports for path in step.needs} == {path for step in pictures for path in step.needs}


def test_a_knockout_is_done_once_its_result_is_in_the_score_file(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    steps = [step for step in gallery.steps(tmp_path, tmp_path / "evals", DEMO) if step.arguments[0] == "knockout"]
    assert [step.needs[0].name for step in steps] == ["demo--retrieval.json", "demo--r2.json"]
    scores = read_score_file(bundled_model_folder() / "scores" / "demo--r2.json")
    for step, held in zip(steps, ([], [knockout_result()]), strict=True):
        assert not step.is_done
        write_score_file(step.needs[0], replace(scores, extra={**scores.extra, CAUSAL: held}))
        assert step.is_done == bool(held)


def test_tables_take_the_places_that_wait_for_them(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("a\n<!-- scores demo -->\nold\n<!-- end -->\nb\n<!-- other -->\nkept\n<!-- end -->\n")
    assert fill(page, {"scores demo": "| new |", "scores none": "| lost |"}) == ["scores none"]
    assert page.read_text() == (
        "a\n<!-- scores demo -->\n\n| new |\n\n<!-- end -->\nb\n<!-- other -->\nkept\n<!-- end -->\n"
    )


def test_a_step_that_is_done_is_not_run_again_and_one_that_fails_does_not_stop_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    done = tmp_path / "done.json"
    done.touch()
    steps = [
        Step(("needles", "--wrong"), (done,)),
        Step(("scores", "show", "none.json"), (tmp_path / "a",)),
        Step(("heatmap", "none.json"), (tmp_path / "b",), (tmp_path / "none.json",)),
        Step(("needles", "--json"), (tmp_path / "c",)),
    ]
    failed = run_all(steps)
    assert failed is not None
    assert failed.splitlines() == [
        "exit code 3: headprobe scores show none.json",
        "left out, since none.json is missing: headprobe heatmap none.json",
    ]
    out = capfd.readouterr().out
    assert "--wrong" not in out
    assert '"reasoning"' in out


def test_an_interrupted_step_ends_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert run_all([Step(("a",), (tmp_path / "x",))]) == "exit code 1: headprobe a"
    fake = tmp_path / "python"
    fake.write_text("#!/bin/sh\nexit 143\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(SystemExit) as ended:
        run_all([Step(("a",), (tmp_path / "x",)), Step(("b",), (tmp_path / "y",))])
    assert ended.value.code == 143


def test_the_gallerys_files_pass_validation() -> None:
    seen = {}
    for path in sorted(gallery.GALLERY.glob("*/*.json")):
        seen[path.name] = [each.check for each in validate_file(path).findings if each.severity != "info"]
    assert len(seen) == len(EXHIBITS) * len(gallery.ALL_METHODS)
    assert not {name: found for name, found in seen.items() if found}


def test_the_gallerys_rankings_are_stable_to_the_tenth_head() -> None:
    files = [path for exhibit in EXHIBITS for path in gallery.files_of(gallery.GALLERY, exhibit).values()]
    assert len(files) == len(EXHIBITS) * len(gallery.ALL_METHODS)
    assert not [file.path.name for file in files if gallery.stable_top(file) != "10 of 10"]


def test_the_gallerys_files_are_what_its_steps_would_make() -> None:
    tokens = {"512": 512, "1k": 1024, "2k": 2048, "4k": 4096}
    for exhibit in EXHIBITS:
        for run in exhibit.runs:
            needles = load_needles(run.needles)
            for method in run.methods:
                path = gallery.score_file(gallery.GALLERY, exhibit.model, method)
                probes = read_score_file(path).provenance.probes
                assert probes["lengths"] == [tokens[length] for length in run.lengths.split(",")], path.name
                if "needles" in probes:
                    assert probes["needles"]["sha256"] == needles.sha256, path.name
                    assert probes["needles_per_cell"] == run.needles_per_cell, path.name
                else:
                    assert method in gallery.ASK_NOTHING, path.name


def test_the_gallerys_own_needles_are_others_than_those_shipped() -> None:
    for own, kind, count in ((gallery.MORE_RETRIEVAL, "retrieval", 342), (gallery.MORE_REASONING, "reasoning", 168)):
        more, shipped = (load_needles(name).needles for name in (own, kind))
        assert len({needle.answer for needle in more}) == len(more) == count
        assert {needle.kind for needle in more} == {kind}
        assert not {needle.answer for needle in shipped} & {needle.answer for needle in more}
        if kind == "retrieval":  # others ask for an older person, whoever that is
            assert not {needle.question for needle in shipped} & {needle.question for needle in more}


def test_reasoning_needles_of_the_gallery_are_balanced() -> None:
    more = load_needles(gallery.MORE_REASONING).needles
    answer_first = [needle.text.index(needle.answer) < needle.text.index(needle.distractor or "") for needle in more]
    assert sum(answer_first) * 2 == len(more)
    first, second = re.compile("older|later|larger|heavier"), re.compile("younger|earlier|smaller|lighter")
    asked = [sum(bool(word.search(needle.question)) for needle in more) for word in (first, second)]
    assert abs(asked[0] - asked[1]) <= 3

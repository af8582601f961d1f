"""`headprobe knockout` from the outside: on the bundled model, whose copying heads are known, and what it refuses."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headprobe.commands.knockout import KnockoutProgress, step_row
from headprobe.errors import OptionError
from headprobe.evaluation.knockout.bench import (
    NEEDLES,
    TEXT,
    KnockoutBench,
    KnockoutOptions,
    Memory,
    needle_record,
    record_kind,
)
from headprobe.evaluation.knockout.checks import RecordCheck
from headprobe.evaluation.knockout.head_orders import HeadOrder
from headprobe.evaluation.knockout.study import KnockoutStudy, knockout
from headprobe.evaluation.knockout.verdict import knockout_curves
from headprobe.models.catalog import bundled_model_folder, planted_heads
from headprobe.models.loading import LoadedModel, load_model
from headprobe.scores.any_scores import read_any
from headprobe.scores.score_file import read_score_file, write_score_file
from tests.conftest import CliResult
from tests.fork_server import ForkServer, Program
from tests.tiny_models import build_tiny_model

Cli = Callable[..., CliResult]
SHIPPED = bundled_model_folder() / "scores" / "demo--r2.json"
SMALL = ["--lengths", "256", "--depths", "3", "--needles-per-cell", "2", "--top", "4", "--draws", "5"]


@pytest.fixture
def scores(tmp_path: Path) -> Path:
    return Path(shutil.copy(SHIPPED, tmp_path / "demo.json"))


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo", device="cpu")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("llama", tmp_path_factory.mktemp("models"))


def test_the_time_left_goes_by_head_sets_of_prompts_and_of_texts(
    demo: LoadedModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = KnockoutOptions(top=(2,), draws=3, lengths=(256,), depths=2, needles_per_cell=1, batch=2)
    study = KnockoutStudy.build(demo, read_any(SHIPPED), options)
    clock, kept = [0.0], Memory()
    monkeypatch.setattr("headprobe.commands.knockout.monotonic", lambda: clock[0])
    progress = KnockoutProgress(study, kept)  # type: ignore[arg-type]
    due = study.bench.records_due(study.sets.values())
    assert [record_kind(name)[0] for name in due] == ([NEEDLES] * 2 + [TEXT] * 8) * 3  # 1, 2 and 2 sets of heads
    for name in due[:21]:
        kind, batch = record_kind(name)
        clock[0] += (1.0 if kind == NEEDLES else 20.0) * (2 if batch else 1)
        kept.add({"trial": name, "rows": [{"answered": True}]})
        progress.update({"trial": name})
    assert capsys.readouterr().err.splitlines() == [
        "headprobe: 3 of 30 pieces, 22 s so far, about 13 min left",  # 7 texts, and 16 of two sets, by 20 s; 8 by 1 s
        "headprobe: 6 of 30 pieces, 82 s so far, about 12 min left",
        "headprobe: 9 of 30 pieces, 2.4 min so far, about 11 min left",
        "headprobe: 12 of 30 pieces, 2.8 min so far, about 11 min left",
        "headprobe: 15 of 30 pieces, 4.8 min so far, about 8.7 min left",
        "headprobe: 18 of 30 pieces, 6.8 min so far, about 6.7 min left",
        "headprobe: 21 of 30 pieces, 8.1 min so far, about 5.4 min left",
    ]


def test_the_planted_heads_matter_and_the_score_file_says_so_afterwards(cli: Cli, scores: Path) -> None:
    done = cli("knockout", scores, *SMALL, "--json", "-o", "out")
    assert done.code == 0, done.err
    assert "6 prompts of 6 needles, 6 sets of heads in 2 batches: 28 pieces of work, 0 of them done" in done.err
    record = json.loads(done.out)
    assert {tuple(head) for head in record["heads"]} == set(planted_heads().copying)
    (step,) = record["steps"]
    assert record["whole"]["answered"]["mean"] == 1.0
    assert step["top"]["answered"]["mean"] == 0.0
    assert step["random"]["answered"]["mean"] >= 0.9
    assert step["top"]["answer_loss"]["mean"] > 5 > 1 > step["random"]["answer_loss"]["mean"]
    assert record["effect"] == "causal"
    assert record["verdict"].startswith("The heads matter: removing the top 4 costs 100 points, random")
    assert {file.name for file in Path("out").iterdir()} == {"trials.jsonl", "summary.json", "knockout.png"}
    kept = {key: value for key, value in record.items() if key not in ("path", "written_to")}
    assert json.loads(Path("out/summary.json").read_text(encoding="utf-8")) == kept

    again = cli("knockout", scores, *SMALL, "-o", "out")
    assert (again.code, again.err) == (
        10, "headprobe: error: out/trials.jsonl holds a run: continue with --resume or start over with --overwrite\n",
    )  # fmt: skip
    before, rows = read_score_file(scores), Path("out/trials.jsonl").read_bytes()
    written = cli("knockout", scores, *SMALL, "-o", "out", "--resume", "--write")
    assert written.code == 0, written.err
    assert Path("out/trials.jsonl").read_bytes() == rows
    assert record["verdict"] in written.out
    assert f"and, as `causal`, into {scores}" in written.out
    after = read_score_file(scores)
    assert after.extra["causal"] == [{name: record[name] for name in after.extra["causal"][0]}]
    assert (after.mean == before.mean).all()
    assert after.trials == before.trials

    held = scores.read_bytes()
    twice = cli("knockout", scores, *SMALL, "-o", "out", "--resume", "--write")
    assert (twice.code, twice.err) == (
        10, "headprobe: error: the score file holds a result by 'mask' already; --overwrite replaces it\n",
    )  # fmt: skip
    replaced = cli("knockout", scores, *SMALL, "-o", "out", "--resume", "--write", "--overwrite")
    assert (replaced.code, scores.read_bytes()) == (0, held)

    shown = cli("scores", "show", scores)
    assert "do the heads matter?" in shown.out
    assert " ".join(record["verdict"].split()[:9]) in " ".join(shown.out.split())
    assert json.loads(cli("scores", "show", scores, "--json").out)["causal"] == after.extra["causal"]
    assert cli("report", scores, "-o", "page.html").code == 0
    assert "Do the heads matter?" in Path("page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_the_planted_heads_matter_by_other_modes_too(demo: LoadedModel, mode: str) -> None:
    options = KnockoutOptions(mode=mode, lengths=(256,), depths=3, needles_per_cell=2, top=(4,), draws=2)
    found = knockout(SHIPPED, demo, options)
    assert found.whole["answered"].mean == 1.0
    assert found.steps[0].top["answered"].mean == 0.0
    assert found.steps[0].random is not None
    assert (found.steps[0].random["answered"].mean or 0.0) >= 0.8


def test_curves_of_several_orders_share_what_is_equal(demo: LoadedModel) -> None:
    options = KnockoutOptions(lengths=(256,), depths=2, needles_per_cell=1, batch=2)
    bench = KnockoutBench.build(demo, options)
    best = HeadOrder.of(read_any(SHIPPED)).ranked
    others = [head for head in best if head not in best[:6]]
    orders = {"best": best, "again": [*best[3::-1], *best[4:]], "others": others}
    records: list[dict[str, Any]] = []
    curves = knockout_curves(bench, orders, [2, 4], on_record=records.append)
    sets = {frozenset(order[:k]) for order in orders.values() for k in (2, 4)}
    assert (len(sets), len(bench.batches([tuple(each) for each in sets]))) == (5, 4)
    assert len(records) == 4 * (2 + len(bench.texts))
    assert curves["best"].outcomes[1] == curves["again"].outcomes[1]
    assert curves["best"].area() < 0.5 < curves["others"].area() == 1.0  # type: ignore[operator]
    with pytest.raises(OptionError, match=r"steps \[2, 49\] do not rise from 1 to at most the 48 of 'best'"):
        knockout_curves(bench, {"best": best}, [2, 49])


@pytest.mark.parametrize(("arguments", "message"), [
    (["--top", "0"], "--top 0 is out of range: need 1 to 48, the heads of the score file"),
    (["--top", "1,49"], "--top 49 is out of range: need 1 to 48, the heads of the score file"),
    (["--top", "many"], "--top 'many' is not a number of heads (write 5 or 1,2,5)"),
    (["--mode", "none"], "heads are switched off by mask, zero, mean, not 'none'"),
    (["--draws", "0"], "--draws is 0, need at least 1 (5 or more for a fair comparison)"),
    (["--draws", "1001"], "1,001 draws are too many, need at most 1,000"),
    (["--limit", "0"], "the limit must be at least 1 trial, got 0"),
    (["--batch", "0"], "--batch is 0, need 1 to 1024"),
    (["--lengths", "0"], "length 0 must be at least 1 token"),
    (["--model", "phi3-mini"], "demo.json has 6 layers x 8 query heads, phi3-mini has 32 x 32: scores of another "
     "model"),
])  # fmt: skip
def test_wrong_options_end_in_one_line_before_the_model_loads(
    cli: Cli, scores: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headprobe.geometry import ModelGeometry

    phi3 = ModelGeometry(32, 32, 32, 96, ("full_attention",) * 32)  # its config would come from the hub
    if "--model" in arguments:
        monkeypatch.setattr("headprobe.evaluation.knockout.checks.geometry_of", lambda name: phi3)
    monkeypatch.setattr("headprobe.commands.knockout.load_model", None)
    done = cli("knockout", scores, *arguments)
    assert (done.code, done.out, done.err) == (2, "", f"headprobe: error: {message}\n")
    assert [file.name for file in Path().iterdir()] == ["demo.json"]


def test_files_that_do_not_say_whose_they_are_need_a_model(cli: Cli, scores: Path, tiny: Path) -> None:
    Path("duo.tsv").write_text("0.1\t0.9\n0.5\t0.2\n")
    assert cli("knockout", "duo.tsv").err == (
        "headprobe: error: duo.tsv does not say whose scores it holds: --model does\n"
    )
    assert cli("knockout", "duo.tsv", "--model", tiny, "--write").err == (
        "headprobe: error: duo.tsv is of format duo, which cannot hold a result: leave out --write, or bring it into "
        "headprobe's form with `headprobe scores convert`\n"
    )
    native = read_score_file(scores)
    owner = replace(native.provenance.model, id="my-model")
    write_score_file("named.json", replace(native, provenance=replace(native.provenance, model=owner)))
    assert cli("knockout", "named.json").err == (
        "headprobe: error: named.json holds scores of a folder called 'my-model': --model names where it lies\n"
    )


def test_scores_of_another_model_of_the_same_shape_are_refused(cli: Cli, scores: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(bundled_model_folder(), other, ignore=shutil.ignore_patterns("scores"))
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    done = cli("knockout", scores, "--model", other, "--device", "cpu")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"headprobe: error: demo.json holds scores of demo, which is not {other}: another config\n"


def test_a_model_that_answers_nothing_has_nothing_to_lose(cli: Cli, tiny: Path) -> None:
    Path("duo.tsv").write_text("0.1\t0.9\n0.5\t0.2\n")
    given = ["--lengths", "420", "--depths", "2", "--needles-per-cell", "1", "--device", "cpu", "-o", "out"]
    done = cli("knockout", "duo.tsv", "--model", tiny, *given)
    assert (done.code, done.out) == (6, "")
    assert "headprobe: note: a KV head stands for all query heads that share it\n" in done.err
    assert "headprobe: note: no random KV heads to compare with at 4: fewer than that are left of 4\n" in done.err
    assert (
        "error: the model answers none of 2 prompts with all its heads on, so that switching heads off can" in done.err
    )
    assert not Path("out/summary.json").exists()


# Whoever ends it may come late on a busy machine: it waits for that.
HANGING = """
import sys, time
from headprobe.profiling.journal import Journal
add = Journal.add
def add_and_wait(journal, record):
    add(journal, record)
    if len(journal.records) == 12:
        for _ in range(6000):  # an interrupt just before one long sleep would wait for its end
            time.sleep(0.05)
Journal.add = add_and_wait
from headprobe.__main__ import run
sys.exit(run())
"""


@pytest.mark.parametrize("sent", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT])
def test_a_run_that_was_ended_goes_on_where_it_stopped(
    cli: Cli, server: ForkServer, scores: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    given = ["knockout", str(scores), "--lengths", "256", "--depths", "3", "--needles-per-cell", "1", "--top", "1",
             "--draws", "1", "--device", "cpu"]  # fmt: skip
    process = server.fork(*given, "-o", "ended", program=Program(code=HANGING))
    journal, deadline = tmp_path / "ended" / "trials.jsonl", time.monotonic() + 400
    while time.monotonic() < deadline and process.poll() is None:
        if journal.exists() and journal.read_bytes().count(b"\n") > 12:  # the plan stands first
            break
        time.sleep(0.01)
    process.send_signal(sent)
    assert process.wait() == (130 if sent == signal.SIGINT else -sent)
    if sent == signal.SIGINT:
        hint = "headprobe: interrupted: finished trials are kept, the same command with --resume continues\n"
        assert process.err.endswith(hint)
    assert journal.read_bytes().count(b"\n") == 1 + 12
    assert not (tmp_path / "ended" / "summary.json").exists()
    assert cli(*given, "-o", "ended", "--resume").code == 0
    assert cli(*given, "-o", "whole").code == 0
    whole, ended = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("whole", "ended"))
    assert (
        set(whole.pop("stages"))
        == set(ended.pop("stages"))
        == {"load", "prefill", "decode", "scoring", "write", "total"}
    )
    assert list(ended.items()) == list(whole.items())
    assert journal.read_bytes() == (tmp_path / "whole" / "trials.jsonl").read_bytes()
    other = cli(*given, "-o", "ended", "--resume", "--draws", "2")
    assert other.code == 9
    assert "was written for another plan, which differs in heads_switched_off: " in other.err
    assert "draws: 1 -> 2" in other.err


def test_records_that_no_run_writes_are_refused(demo: LoadedModel) -> None:
    options = KnockoutOptions(lengths=(256,), depths=1, needles_per_cell=1, top=(1,), draws=1)
    study = KnockoutStudy.build(demo, read_any(SHIPPED), options)
    check = RecordCheck(study.bench, list(study.sets.values()))
    row: dict[str, Any] = {
        "response": "x",
        "answered": True,
        "exact_match": False,
        "answer_f1": 0.5,
        "answer_loss": None,
    }
    needle, text = study.bench.records_due(study.sets.values())[:2]
    check({"trial": needle, "rows": [row]})
    check({"trial": text, "losses": [2.5]})
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"trial": "text|9|0", "losses": [1.0]}, "the run has no such trial"),
        ({"trial": text, "losses": [1.0, 2.0]}, "its losses are .*, need a list of 1"),
        ({"trial": text, "losses": [-1.0]}, "its losses are not all numbers of at least 0"),
        ({"trial": needle, "rows": []}, r"its rows are \[\], need a list of 1"),
        ({"trial": needle, "rows": [3]}, "one of its rows is no object"),
        ({"trial": needle, "rows": [row | {"answered": 1}]}, "its answered is 1"),
        ({"trial": needle, "rows": [row | {"answer_f1": 1.5}]}, "its answer_f1 is 1.5"),
        ({"trial": needle, "rows": [row | {"answer_loss": "x"}]}, "its answer_loss is 'x'"),
    ]
    for record, message in wrong:
        with pytest.raises(ValueError, match=message):
            check(record)


def test_lines_of_the_tables() -> None:
    from tests.evaluation.knockout.test_verdict import outcome, step

    found = step(outcome(10), outcome(40, 2.5), outcome(30, 2.7))
    row = step_row(found, "answered")
    assert (row[0], row[1], row[3], row[5], row[6]) == ("5", "25", "88", "75 to 100", "+62")
    assert step_row(found, "text_loss") == (
        "5", "+0.00", "+0.00 to +0.00", "+0.60", "+0.60 to +0.60", "+0.50 to +0.70", "+0.60", "+0.60 to +0.60",
    )  # fmt: skip
    alone = step_row(step(outcome(10)), "answered")
    assert alone[3:] == ("", "", "", "", "")


def test_what_the_whole_model_does_not_answer_is_not_asked_again(demo: LoadedModel) -> None:
    options = KnockoutOptions(lengths=(256,), depths=3, needles_per_cell=1, top=(4,), draws=1)
    study = KnockoutStudy.build(demo, read_any(SHIPPED), options)
    bench, kept = study.bench, Memory()
    asked = [prompt.trial_id for prompt in bench.prompts]
    row = {"response": "x", "answered": False, "exact_match": False, "answer_f1": 0.0, "answer_loss": 9.0}
    kept.add({"trial": needle_record(0, asked[1]), "rows": [row]})
    sets = list(study.sets.values())
    assert len(bench.records_due(sets, kept.records)) == 2 * (3 + len(bench.texts))  # it is not known yet
    result = study.run(kept)
    assert [prompt.trial_id for prompt in result.prompts] == [asked[0], asked[2]]
    assert set(kept.records) == set(bench.records_due(sets, kept.records))
    assert needle_record(1, asked[1]) not in kept.records
    assert result.whole["answered"].mean == 1.0
    assert (result.causal()["num_asked"], result.causal()["num_prompts"]) == (3, 2)
    assert result.verdict.text == "Cannot be said with 2 answered needles: needs at least 5 different ones."

"""Methods on texts that are read twice: exact against plain loops, in whatever blocks, and whole runs of them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headprobe.errors import FileFormatError, OptionError
from headprobe.models.loading import load_model
from headprobe.probes.reading import PASSAGE, RANDOM, Reading
from headprobe.profiling import profiler as profiler_module
from headprobe.profiling.estimators import estimators
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.profiling.run import score
from headprobe.spans import Span
from tests.profiling.oracle import oracle_reading
from tests.tiny_models import TINY_MODELS, tiny_model

METHODS = ("induction", "echo", "reconstruction")
OPTIONS = ScoreOptions(methods=("r2", *METHODS, "mass"), lengths=(200, 256), depths=3, needles_per_cell=1)


def random_reading(period: int = 11, copies: int = 4) -> Reading:
    drawn = tuple(random.Random(period).sample(range(3, 64), period))
    ids = (1, *(drawn * copies))
    return Reading("random-01@48", RANDOM, "", ids, Span(1, 1 + period), Span(1 + period, len(ids)))


def passage_reading() -> Reading:
    r = random.Random(5)
    text, request = [r.randrange(3, 64) for _ in range(20)], [r.randrange(3, 64) for _ in range(4)]
    ids = (1, 9, *text, *request, *text[:-1])  # the second copy may have other tokens
    return Reading("passage-01@48", PASSAGE, "", ids, Span(2, 22), Span(26, 45))


def measured(model: Any, *readings: Reading, **options: Any) -> dict[str, Measured]:
    found = Profiler(model, estimators(METHODS), set(), **options).measure(readings)
    results = {prompt.trial_id: result for prompt, result in found}
    assert all(isinstance(result, Measured) for result in results.values())
    return results  # type: ignore[return-value]


def assert_equals_oracle(model: Any, results: dict[str, Measured], *readings: Reading) -> None:
    model.set_attn_implementation("eager")
    for reading in readings:
        names = ["reconstruction"] if reading.kind == PASSAGE else ["induction", "echo"]
        scores = results[reading.trial_id].scores
        assert list(scores) == names
        for name in names:
            wanted = torch.tensor(oracle_reading(model, reading, name), dtype=torch.float64)
            torch.testing.assert_close(scores[name], wanted, atol=1e-5, rtol=0, msg=name)


@pytest.mark.parametrize("architecture", TINY_MODELS)
def test_scores_equal_the_oracle_for_every_architecture(architecture: str) -> None:
    model, readings = tiny_model(architecture, seed=1), (random_reading(), passage_reading())
    assert_equals_oracle(model, measured(model, *readings), *readings)


@pytest.mark.parametrize("rows", [1, 5, 32])
def test_the_size_of_blocks_does_not_change_scores(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiler_module, "READING_ROWS", rows)
    model, readings = tiny_model("gemma3", seed=2), (random_reading(), passage_reading())
    assert_equals_oracle(model, measured(model, *readings), *readings)


def test_pieces_of_the_prefill_do_not_change_scores() -> None:
    model, readings = tiny_model("qwen3", seed=3), (random_reading(), passage_reading())
    assert_equals_oracle(model, measured(model, *readings, prefill_chunk=3), *readings)


def test_what_the_model_foretells_of_the_second_reading_is_counted() -> None:
    model, reading = tiny_model("llama", seed=4), random_reading()
    with torch.no_grad():
        said = model(torch.tensor([reading.input_ids])).logits[0].argmax(-1).tolist()
    behind = range(reading.again_span.start, reading.again_span.end - 1)
    right = sum(said[p] == reading.input_ids[p + 1] for p in behind)
    assert measured(model, reading)[reading.trial_id].copied == pytest.approx(right / len(behind))


# -- whole runs -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo")


@pytest.fixture(scope="module")
def files(demo: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a run of methods with and without needles."""
    folder = tmp_path_factory.mktemp("readings")
    score(demo, OPTIONS, output=folder)
    return folder


def payload(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_bytes())
    return {key: value for key, value in content.items() if key not in ("created_at", "environment")}


def test_one_run_takes_methods_with_and_without_needles(files: Path) -> None:
    made = {path.name.partition("--")[2].removesuffix(".json"): payload(path) for path in files.glob("*.json")}
    assert set(made) == set(OPTIONS.methods)
    assert {name: len(one["trials"]) for name, one in made.items()} == dict.fromkeys(made, 6)
    assert made["induction"]["probes"]["prompts"] == "random"
    assert "haystack" not in made["induction"]["probes"]
    assert made["reconstruction"]["probes"]["haystack"]["name"] == "all"
    assert made["reconstruction"]["probes"]["request"] == "Repeat the previous context:"
    assert made["r2"]["probes"]["needles"]["name"] == "reasoning"
    assert not list(files.glob("*.journal"))


def test_every_trial_without_a_question_counts_and_its_file_says_so(files: Path) -> None:
    for name in METHODS:
        made = payload(files / f"demo--{name}.json")
        assert made["method"]["parameters"]["gate"] is None
        assert made["method"]["parameters"]["counts"] == "every trial: nothing is asked"
        assert all(trial["passed"] and trial["response"] == "" for trial in made["trials"])
        assert all(trial["copied"] > 0.9 for trial in made["trials"])


@pytest.mark.parametrize("name", METHODS)
def test_a_method_gives_the_same_file_alone_as_beside_others(files: Path, demo: Any, tmp_path: Path, name: str) -> None:
    alone = ScoreOptions(methods=(name,), lengths=(200, 256), depths=3, needles_per_cell=1)
    score(demo, alone, output=tmp_path / "alone.json")
    assert payload(tmp_path / "alone.json") == payload(files / f"demo--{name}.json")


def test_files_validate_without_warnings(tmp_path: Path, cli: Any) -> None:
    every = "r2,mass,qr,logit,reconstruction,induction,echo"
    grid = ("--needles", "retrieval", "--lengths", "256", "--depths", "10", "--needles-per-cell", "2")
    assert cli("score", "--method", every, *grid, "-o", f"{tmp_path}/").code == 0
    reports = json.loads(cli("scores", "validate", *sorted(tmp_path.glob("*.json")), "--json").out)
    assert len(reports) == 7
    found = {report["path"]: [f["check"] for f in report["findings"]] for report in reports}
    assert {name: checks for name, checks in found.items() if checks} == {}


@pytest.mark.parametrize("name", ["mass", "qr", "logit", "reconstruction", "induction"])
def test_the_planted_heads_lead(files: Path, demo: Any, tmp_path: Path, name: str) -> None:
    options = ScoreOptions(methods=(name,), needles=None, lengths=(512,), depths=2)
    table = score(demo, options, output=tmp_path / "s.json").scores[name]
    best = [(layer, head) for layer, head, _ in table.top(6)]
    assert {(3, 5), (4, 2), (4, 7), (5, 4)} <= set(best)


def test_an_interrupted_run_of_both_kinds_goes_on_to_the_same_files(files: Path, demo: Any, tmp_path: Path) -> None:
    class StopError(Exception):
        pass

    left = [8]

    def stop(_: object) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise StopError

    with pytest.raises(StopError):
        score(demo, OPTIONS, output=tmp_path, on_trial=stop)
    assert len(next(tmp_path.glob("*.journal")).read_bytes().splitlines()) == 9
    score(demo, OPTIONS, output=tmp_path, resume=True)
    for path in files.glob("*.json"):
        assert payload(tmp_path / path.name) == payload(path)


def test_a_damaged_trial_without_a_question_is_refused_on_resuming(demo: Any, tmp_path: Path) -> None:
    options = ScoreOptions(methods=("echo",), lengths=(128,), depths=2)
    job = prepare(demo, options)
    check = job.record_check(demo)
    table = np.zeros(demo.geometry.shape).tolist()
    good = {"trial": "random-01@128", "response": "", "f1": 0.0, "rouge1_recall": 0.0, "deciding_words": 0.0,
            "chose": "other", "num_steps": 96, "copied": 0.5, "scores": {"echo": table}}  # fmt: skip
    check(good)
    with pytest.raises(ValueError, match="its copied is 1.5, need a number from 0 to 1"):
        check({**good, "copied": 1.5})
    with pytest.raises(ValueError, match="its scores by echo are no table"):
        check({**good, "scores": {"induction": table}})


def test_growing_rounds_stop_for_methods_of_both_kinds(demo: Any, tmp_path: Path) -> None:
    options = ScoreOptions(methods=("mass", "induction"), lengths=(128,), depths=20, needles_per_cell=2, until_stable=3)
    run = score(demo, options, output=tmp_path)
    assert run.scores["mass"].num_trials + run.scores["induction"].num_trials < 60
    assert run.scores["induction"].num_trials >= 5
    assert run.scores["induction"].provenance.probes["until_stable"]["top"] == 3


def test_needles_for_methods_that_take_none_are_refused(demo: Any) -> None:
    with pytest.raises(OptionError, match="induction, echo take no needles: leave out 'retrieval'"):
        prepare(demo, ScoreOptions(methods=("induction", "echo"), needles="retrieval", lengths=(128,)))


def test_an_unknown_set_is_refused_where_needles_are_taken(demo: Any) -> None:
    with pytest.raises((OptionError, FileFormatError)):
        prepare(demo, ScoreOptions(methods=("induction", "r2"), needles="nothing-like-it", lengths=(128,)))

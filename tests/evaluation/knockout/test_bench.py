"""What counts as answered when heads are off: the gate that scores go by, over as many tokens as it reads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from headprobe.evaluation.knockout.ablated_runs import AblatedRuns, Said, most_read
from headprobe.evaluation.knockout.bench import KnockoutBench, KnockoutOptions
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.needle import Needle
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators.estimator import ANSWERED_GATE
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.run import score

ANSWER = "The favourite colour of Ada is green."
OTHER = "The favourite colour of Tom is red."
NEEDLE = Needle("n", "retrieval", "colour", (ANSWER, OTHER), ANSWER, "What is the favourite colour of Ada?", OTHER)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo", device="cpu")


@pytest.fixture
def bench(demo: LoadedModel) -> KnockoutBench:
    made = KnockoutBench.build(demo, KnockoutOptions(lengths=(256,), depths=1, needles_per_cell=1), with_texts=False)
    made.needles[made.prompts[0].trial_id] = NEEDLE
    return made


@pytest.mark.parametrize(
    ("response", "is_answered"),
    [
        ("Green.", True),
        ("Her colour, as it says above, is green", True),
        ("The favourite colour of Ada is a ripe", False),  # most words of the answer, none that decides
        ("The favourite colour of Tom is red. Green.", False),  # what is said first counts
        ("", False),
    ],
)
def test_an_answer_is_one_that_has_the_words_that_decide(
    bench: KnockoutBench, response: str, is_answered: bool
) -> None:
    assert bench.is_answered(bench.prompts[0], response) == is_answered


def test_the_gate_reads_on_and_the_other_figures_do_not(bench: KnockoutBench, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = bench.loaded.tokenizer.encode
    first, later = encode("Let me see. The colour is"), encode(" green.")
    asked: list[bool] = []

    def answers(runs: AblatedRuns, prompts: Sequence[Prompt], done: object) -> Iterator[tuple[Prompt, list[Said]]]:
        reads_on = runs._reads_on
        assert reads_on is not None
        asked.extend([reads_on(prompts[0], first), reads_on(prompts[0], [*first, *later])])
        yield prompts[0], [Said(tuple(first), 1.0, tuple(later))]

    monkeypatch.setattr(AblatedRuns, "answers", answers)
    (outcome,) = bench.measure(()).outcomes.values()
    assert asked == [True, False]
    assert outcome.answered == (1.0,)
    assert outcome.exact_match == (0.0,)
    assert outcome.answer_f1 == (pytest.approx(2 * 2 / (5 + 6)),)  # colour, is: of five words, and of the answer's six
    assert outcome.text_loss is None


def test_prompts_that_count_are_those_that_count_in_scoring(demo: LoadedModel, tmp_path: Path) -> None:
    options = KnockoutOptions(lengths=(256,), depths=3, needles_per_cell=2, needles="reasoning", seed=0)
    bench = KnockoutBench.build(demo, options, with_texts=False)
    scores = score(demo, ScoreOptions(lengths=(256,), depths=3, needles_per_cell=2), output=tmp_path / "demo.json")
    passed = [trial.id for trial in scores.scores["r2"].trials if trial.passed]
    assert [prompt.trial_id for prompt in bench.measure(()).prompts] == passed


def test_a_journal_belongs_to_its_gate(bench: KnockoutBench) -> None:
    assert bench.describe(())["gate"] == ANSWERED_GATE.record()


def test_answers_are_read_on_to_twice_their_length_and_not_past_the_window(demo: LoadedModel) -> None:
    prompt = prepare(demo, ScoreOptions(lengths=(demo.window,), depths=1, needles_per_cell=1)).needle_prompts[0]
    room = demo.window - len(prompt.input_ids)
    assert most_read(demo, prompt) == max(len(prompt.answer_ids), min(room, 2 * len(prompt.answer_ids)))
    short = prepare(demo, ScoreOptions(lengths=(256,), depths=1, needles_per_cell=1)).needle_prompts[0]
    assert most_read(demo, short) == 2 * len(short.answer_ids)

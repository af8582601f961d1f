"""RULER's sets as they are made here: to a length, the same for the same seed, with the answers that they ask for."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import FileFormatError, PlanError
from headprobe.evaluation.metrics import METRICS
from headprobe.evaluation.task import TaskQuestion, TaskRequest, load_sets, parse_tasks
from headprobe.evaluation.task_prompts import prompts_of
from headprobe.evaluation.tasks.ruler_kinds import KINDS, read_documents
from headprobe.models.loading import load_model

LENGTH = 1024
MADE = [name for name, kind in KINDS.items() if kind.files is None]


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu")


def made(demo: Any, name: str, length: int = LENGTH, **more: Any) -> list[TaskQuestion]:
    (each,) = load_sets(parse_tasks(f"ruler:{name}"), TaskRequest(lengths=(length,), **{"limit": 2, **more}))
    return list(each.questions(demo))


@pytest.mark.parametrize("name", MADE)
def test_prompts_fill_their_length_and_are_the_same_for_the_same_seed(demo: Any, name: str) -> None:
    sets = load_sets(parse_tasks(f"ruler:{name}"), TaskRequest(lengths=(LENGTH,), limit=2))
    prompts = prompts_of(demo, sets, limit=2)
    room = LENGTH - KINDS[name].max_new_tokens
    for prompt in prompts:
        assert 0.85 * room < len(prompt.input_ids) <= room
        assert prompt.cut_tokens == 0
        assert prompt.context_tokens is not None
    again = made(demo, name)
    assert again == made(demo, name)
    assert again[0].context != again[1].context
    assert made(demo, name, seed=1)[0].context != again[0].context


@pytest.mark.parametrize("name", [name for name in MADE if name not in ("cwe", "fwe")])
def test_all_answers_stand_in_the_context(demo: Any, name: str) -> None:
    (asked, _) = made(demo, name)
    assert METRICS["string_match_all"].score(asked.context, asked.answers, ()) == 1.0


@pytest.mark.parametrize(
    ("name", "answers", "hidden", "value"),
    [
        ("niah_single_1", 1, 1, r"\d{7}"), ("niah_single_2", 1, 1, r"\d{7}"), ("niah_single_3", 1, 1, "[0-9a-f-]{36}"),
        ("niah_multikey_1", 1, 4, r"\d{7}"), ("niah_multivalue", 4, 4, r"\d{7}"), ("niah_multiquery", 4, 4, r"\d{7}"),
    ],
)  # fmt: skip
def test_needles_are_as_many_as_the_set_wants(demo: Any, name: str, answers: int, hidden: int, value: str) -> None:
    (asked, _) = made(demo, name)
    found = re.findall(rf"One secret \w+ of (\S+) is: ({value})\.", asked.context)
    assert len(found) == hidden
    assert len(asked.answers) == answers
    wanted = {answer for key, answer in found if f" {key}" in asked.tail or f" {key}," in asked.tail}
    assert wanted == set(asked.answers)


def test_needles_stand_among_needles_in_the_harder_sets(demo: Any) -> None:
    (asked, _) = made(demo, "niah_multikey_3")
    lines = asked.context.split("\n")
    assert len(lines) == len(set(lines)) > 5
    assert all(line.startswith("One secret code of ") for line in lines)


def test_a_chain_of_variables_hands_on_one_value(demo: Any) -> None:
    (asked, _) = made(demo, "vt")
    steps = re.findall(r"VAR ([A-Z]{5}) = (?:VAR )?(\w+)\.", asked.context)
    value = re.search(r"the value (\d+)\?", asked.tail)
    assert value is not None
    assert [name for name, _ in steps] == list(asked.answers)
    assert [source for _, source in steps] == [value.group(1), *asked.answers[:-1]]


def test_common_words_are_the_answers(demo: Any) -> None:
    (asked, _) = made(demo, "cwe")
    counts = Counter(re.findall(r"\d+\. (\w+)", asked.context))
    assert {word for word, _ in counts.most_common(10)} == set(asked.answers)
    assert min(counts[word] for word in asked.answers) > max(n for w, n in counts.items() if w not in asked.answers)


def test_frequent_coded_words_are_the_answers_but_for_the_dots(demo: Any) -> None:
    (asked, _) = made(demo, "fwe")
    counts = Counter(asked.context.split())
    assert [word for word, _ in counts.most_common(4)] == ["...", *asked.answers]
    assert counts[asked.answers[2]] > sorted(counts.values())[-5]


SQUAD = {
    "data": [
        {"paragraphs": [
            {"context": f"Text {n} says {n * 11}.",
             "qas": [{"question": f"What does {n} say?", "answers": [{"text": str(n * 11)}, {"text": str(n * 11)}]},
                     {"question": "Nothing?", "answers": [], "is_impossible": True}]}
            for n in range(40)
        ]}
    ]
}  # fmt: skip
HOTPOT = [
    {
        "question": f"Who is {n}?",
        "answer": f"Mr {n}",
        "context": [[f"T{n}", [f"Here is Mr {n}.", " Yes."]], [f"U{n}", ["No."]]],
    }
    for n in range(30)
]


@pytest.mark.parametrize(("name", "file", "data"), [("qa_1", "squad.json", SQUAD), ("qa_2", "hotpotqa.json", HOTPOT)])
def test_questions_stand_among_documents(demo: Any, tmp_path: Path, name: str, file: str, data: Any) -> None:
    (tmp_path / file).write_text(json.dumps(data))
    first, second = made(demo, name, 512, data_dir=tmp_path)
    own = {"qa_1": ("Text 1 says 11.", "11"), "qa_2": ("T1\nHere is Mr 1. Yes.", "Mr 1")}[name]
    assert second.answers == (own[1],)
    assert own[0] in second.context
    numbers = re.findall(r"Document (\d+):", second.context)
    assert numbers == [str(n) for n in range(1, len(numbers) + 1)]
    assert len(numbers) > 5
    assert first.context != second.context


@pytest.mark.parametrize("data", [{"data": 7}, [], {}, [{"question": "q"}], 7, {"data": [{"paragraphs": [7]}]}])
def test_a_file_of_another_layout_is_refused(tmp_path: Path, data: Any) -> None:
    (tmp_path / "squad.json").write_text(json.dumps(data))
    with pytest.raises(
        FileFormatError, match=r"squad\.json: (neither SQuAD's nor HotpotQA's layout|holds no question)"
    ):
        read_documents(tmp_path / "squad.json")


def test_a_length_that_holds_no_prompt_or_is_beyond_the_window_is_refused(demo: Any) -> None:
    with pytest.raises(PlanError, match="ruler:vt@60: 30 tokens beside the answer are too few"):
        made(demo, "vt", 60)
    with pytest.raises(PlanError, match="length 4096 is beyond the model's window of 2048"):
        made(demo, "vt", 4096)

"""Files of questions: what each task reads from them, and what it says of broken ones."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headprobe.errors import FileFormatError, OptionError
from headprobe.evaluation.metrics import METRICS
from headprobe.evaluation.task import TASKS, TaskQuestion, TaskRequest, load_sets, parse_tasks, read_templates
from headprobe.evaluation.tasks import files
from headprobe.evaluation.tasks.longbench import FACTS
from tests.evaluation.task_parts import CONTEXT, own_file, write_lines

LONG = {"input": "Where is the key?", "context": CONTEXT, "answers": ["by the gate"], "all_classes": None}


def questions(text: str, data_dir: Path, **more: Any) -> list[TaskQuestion]:
    sets = load_sets(parse_tasks(text), TaskRequest(data_dir=data_dir, **more))
    return [question for each in sets for question in each.questions(SimpleNamespace())]  # type: ignore[arg-type]


def test_longbench_asks_in_our_words_with_context_and_question_apart(tmp_path: Path) -> None:
    write_lines(tmp_path / "longbench" / "qasper.jsonl", LONG, {**LONG, "answers": ["x", "y"]})
    first, second = questions("longbench:qasper", tmp_path)
    assert (first.id, first.context, first.answers) == ("longbench:qasper/1", CONTEXT, ("by the gate",))
    assert second.answers == ("x", "y")
    assert first.tail.endswith("Question: Where is the key?\n\nAnswer:")
    assert first.cluster == second.cluster  # two questions on one text are drawn together


def test_longbench_has_all_21_sets_with_their_metrics_and_lengths() -> None:
    by_metric: dict[str, list[str]] = {}
    for name, facts in FACTS.items():
        by_metric.setdefault(f"{facts.metric} {facts.max_new_tokens}", []).append(name)
    assert by_metric == {
        "qa_f1 128": ["narrativeqa", "qasper"],
        "qa_f1 64": ["multifieldqa_en"],
        "qa_f1_zh 64": ["multifieldqa_zh"],
        "qa_f1 32": ["hotpotqa", "2wikimqa", "musique", "triviaqa"],
        "rouge_zh 128": ["dureader"],
        "rouge_l 512": ["gov_report", "qmsum", "multi_news"],
        "rouge_zh 512": ["vcsum"],
        "classification 64": ["trec", "lsht"],
        "rouge_l 128": ["samsum"],
        "count 32": ["passage_count"],
        "retrieval 32": ["passage_retrieval_en"],
        "retrieval_zh 32": ["passage_retrieval_zh"],
        "code_sim 64": ["lcc", "repobench-p"],
    }
    assert {name for name, facts in FACTS.items() if facts.first_line} == {"trec", "triviaqa", "samsum", "lsht"}
    assert {name for name, facts in FACTS.items() if not facts.chat} == {
        "trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p",
    }  # fmt: skip
    assert all(facts.template.count("{context}") == 1 for facts in FACTS.values())


def test_templates_of_a_file_take_the_place_of_ours(tmp_path: Path) -> None:
    write_lines(tmp_path / "qasper.jsonl", LONG)
    file = write_lines(tmp_path / "prompts.json", {"qasper": "Lies: {context}\nFrage: {input}", "lcc": "{context}"})
    (asked,) = questions("longbench:qasper", tmp_path, templates=read_templates(file))
    assert asked.text == f"Lies: {CONTEXT}\nFrage: Where is the key?"
    for bad in ('{"qasper": "no slot"}', '{"qasper": 7}', "[]", "{}"):
        with pytest.raises(FileFormatError):
            read_templates(write_lines(tmp_path / "bad.json", bad))


def test_braces_in_a_text_are_text(tmp_path: Path) -> None:
    write_lines(
        tmp_path / "qasper.jsonl", {**LONG, "context": "a {input} {context} {x}", "input": "what is {context}?"}
    )
    (asked,) = questions("longbench:qasper", tmp_path)
    assert asked.context == "a {input} {context} {x}"
    assert "what is {context}?" in asked.tail


def test_loogle_reads_pairs_as_literals_and_one_question_a_row(tmp_path: Path) -> None:
    pairs = [{"Q": "Where?", "A": "here", "type": "computation"}, {"Q": "Who?", "A": "she", "type": "timeline_reorder"}]
    write_lines(
        tmp_path / "longdep_qa.jsonl",
        {"input": CONTEXT, "qa_pairs": repr(pairs)}, {"input": CONTEXT, "qa_pairs": pairs},
        {"context": CONTEXT, "question": "When?", "answer": "now", "task": "longdep_qa"},
    )  # fmt: skip
    assert [q.answers for q in questions("loogle:longdep_qa", tmp_path)] == [
        ("here",), ("she",), ("here",), ("she",), ("now",),
    ]  # fmt: skip
    assert [q.answers for q in questions("loogle:longdep_timeline", tmp_path)] == [("she",), ("she",)]


def test_loogle_cloze_and_summary(tmp_path: Path) -> None:
    cloze = [{"Q": "<mask-0> met <mask-1>.", "A": {"<mask-0>": "Ada", "<mask-1>": "Bo: B"}}]
    write_lines(tmp_path / "shortdep_cloze.jsonl", {"input": CONTEXT, "qa_pairs": repr(cloze)})
    write_lines(tmp_path / "summarization.jsonl", {"input": CONTEXT, "qa_pairs": "none", "output": "It is short."})
    (asked,) = questions("loogle:shortdep_cloze", tmp_path)
    said = '{"<mask-0>": "Ada", "<mask-1>": "Bo: B"}'
    assert METRICS["cloze"].score(said, asked.answers, ()) == 1.0
    assert questions("loogle:summarization", tmp_path)[0].answers == ("It is short.",)


def test_loogle_never_runs_what_a_file_says(tmp_path: Path) -> None:
    for text in ("__import__('os').mkdir('made')", "[1, 2", "(" * 5000, "5"):
        write_lines(tmp_path / "longdep_qa.jsonl", {"input": CONTEXT, "qa_pairs": text})
        with pytest.raises(FileFormatError, match=r"longdep_qa\.jsonl:1: 'qa_pairs' is "):
            questions("loogle:longdep_qa", tmp_path)
    assert not (tmp_path / "made").exists()


BABI = [
    {"input": "Ann went to the garden.", "question": "Where is Ann?", "target": "garden"},
    {"input": "Tom went to the office.", "question": "Where is Tom?", "target": "office"},
]


def test_babilong_knows_all_labels_of_its_file_whatever_the_limit(tmp_path: Path) -> None:
    asked_too = {**BABI[0], "question": "Who left the office?", "target": "Ann"}
    write_lines(tmp_path / "babilong" / "1k" / "qa1.jsonl", *BABI, asked_too)
    (first,) = questions("babilong:1k/qa1", tmp_path, limit=1)
    assert (first.context, first.classes) == ("Ann went to the garden.", ("garden", "office"))
    *_, last = questions("babilong:1k/qa1", tmp_path)
    assert last.classes == ("Ann", "garden")  # what the question names is no label


def test_babilong_reads_arrow_tables(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow", reason="pyarrow is not installed: pip install 'headprobe[eval]'")
    for name, new in (("1k/qa1", arrow.ipc.new_stream), ("2k/qa1", arrow.ipc.new_file)):
        path = tmp_path / name / "data-00000-of-00001.arrow"
        path.parent.mkdir(parents=True)
        table = arrow.Table.from_pylist(BABI)
        with arrow.OSFile(str(path), "wb") as sink, new(sink, table.schema) as writer:
            writer.write_table(table)
    assert [q.answers for q in questions("babilong:1k/qa1+2k/qa1", tmp_path)] == [("garden",), ("office",)] * 2
    (tmp_path / "1k" / "qa1" / "data-00000-of-00001.arrow").write_bytes(b"no table at all")
    with pytest.raises(FileFormatError, match="arrow: no arrow table: "):
        questions("babilong:1k/qa1", tmp_path)


def test_infinitebench_turns_choices_into_letters(tmp_path: Path) -> None:
    row = {"context": CONTEXT, "input": "Which?", "answer": ["two"], "options": ["one", "two", "three", "four"]}
    write_lines(tmp_path / "longbook_choice_eng.jsonl", row)
    write_lines(tmp_path / "code_run.jsonl", {"context": "f", "input": "f(1)", "answer": -7})
    (asked,) = questions("infinitebench:longbook_choice_eng", tmp_path)
    assert asked.answers == ("B", "two")
    assert "A. one\nB. two\nC. three\nD. four" in asked.tail
    assert questions("infinitebench:code_run", tmp_path)[0].answers == ("-7",)
    write_lines(tmp_path / "longbook_choice_eng.jsonl", {**row, "answer": "five"})
    with pytest.raises(FileFormatError, match=r"eng\.jsonl:1: 'answer' is \['five'\], none of the options"):
        questions("infinitebench:longbook_choice_eng", tmp_path)


def test_ruler_files_are_whole_prompts(tmp_path: Path) -> None:
    saved = {"index": 0, "input": "Find it. It is", "outputs": ["7", "8"], "length": 5}
    write_lines(tmp_path / "ruler" / "4096" / "vt.jsonl", saved)
    write_lines(tmp_path / "8192" / "vt" / "validation.jsonl", {**saved, "answer_prefix": " Answer:"})
    first, second = questions("ruler:4096/vt+8192/vt", tmp_path)
    assert (first.text, first.lead, first.answers) == ("Find it. It is", "", ("7", "8"))
    assert second.lead == "Answer:"


def test_own_questions_may_have_a_metric_and_a_length_each(tmp_path: Path) -> None:
    path = own_file(tmp_path / "a.jsonl", 1, metric="string_match_all", max_new_tokens=3)
    (asked,) = questions(f"jsonl:{path}", tmp_path)
    assert (asked.metric, asked.max_new_tokens) == ("string_match_all", 3)
    assert questions("jsonl:a.jsonl", tmp_path) == [asked]  # a bare name is looked for in the data folder too


BROKEN = [
    ('{"context": ', r"a\.jsonl:2: not JSON: "),
    ("[1]", r"a\.jsonl:2: need a JSON object, got \[1\]"),
    ('{"question": "q", "answers": ["a"]}', r"a\.jsonl:2: the field 'context' is missing"),
    ('{"context": "", "question": "q", "answers": ["a"]}', r"a\.jsonl:2: 'context' is empty"),
    ('{"context": 7, "question": "q", "answers": ["a"]}', r"a\.jsonl:2: 'context' is 7, need a text"),
    ('{"context": "c", "question": "q"}', r"a\.jsonl:2: the field 'answers' or 'answer' is missing"),
    ('{"context": "c", "question": "q", "answers": []}', r"a\.jsonl:2: 'answers' is \[\], need a text or a list"),
    ('{"context": "c", "question": "q", "answers": ["", " "]}', r"a\.jsonl:2: 'answers' is \['', ' '\]: there is no"),
    ('{"context": "c", "question": "q", "answers": {"a": 1}}', r"a\.jsonl:2: 'answers' is \{'a': 1\}, need a text or"),
    ('{"context": "c", "question": "q", "answers": [null]}', r"a\.jsonl:2: 'answers' is \[None\], need a text or"),
    ('{"context": "c", "question": "q", "answer": "a", "metric": "bleu"}', r"a\.jsonl:2: unknown metric 'bleu': known"),
    ('{"context": "c", "question": "q", "answer": "a", "metric": ["x"]}', r"a\.jsonl:2: a metric is a name such as"),
    ('{"context": "c", "question": "q", "answer": "a", "metric": "only_label"}', r":2: the metric only_label goes by"),
    ('{"context": "c", "question": "q", "answer": "a", "max_new_tokens": 0}', r":2: 'max_new_tokens' is 0, need 1 to"),
    ('{"context": "c", "question": "q", "answer": "a", "max_new_tokens": true}', r":2: 'max_new_tokens' is True, need"),
    ('{"context": "c", "question": "q", "answer": "a", "wobble": 1}', r"a\.jsonl:2: unknown field 'wobble': known are"),
    ('{"context": "\\ud800", "question": "q", "answer": "a"}', r":2: 'context' holds half of a surrogate pair"),
    ('{"context": "c", "context": "d", "question": "q", "answer": "a"}', r"a\.jsonl:2: the key 'context' occurs twice"),
]


@pytest.mark.parametrize(("line", "reason"), BROKEN)
def test_a_broken_line_is_named_with_file_line_and_reason(tmp_path: Path, line: str, reason: str) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"context": "c", "question": "q", "answers": ["a"]}, line)
    with pytest.raises(FileFormatError, match=reason):
        questions(f"jsonl:{path}", tmp_path)


def test_lines_behind_the_limit_are_not_read(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "a.jsonl", {"context": "c", "question": "q", "answers": ["a"]}, "{")
    assert len(questions(f"jsonl:{path}", tmp_path, limit=1)) == 1


def test_bytes_that_are_no_text_and_a_missing_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"context": "\xff"}\n')
    with pytest.raises(FileFormatError, match=r"a\.jsonl:1: byte 13 is not UTF-8"):
        questions(f"jsonl:{path}", tmp_path)
    with pytest.raises(FileFormatError, match=r"b\.jsonl: No such file"):
        questions("jsonl:b.jsonl", tmp_path)
    with pytest.raises(
        OptionError, match=f"no file qasper.jsonl or data/qasper.jsonl of longbench in {re.escape(str(tmp_path))}"
    ):
        questions("longbench:qasper", tmp_path)
    write_lines(tmp_path / "trec.jsonl", LONG)
    with pytest.raises(FileFormatError, match=r"trec\.jsonl:1: 'all_classes' is missing, by which the answer"):
        questions("longbench:trec", tmp_path)
    write_lines(tmp_path / "qasper.jsonl", "")
    with pytest.raises(OptionError, match="longbench:qasper has no question"):
        questions("longbench:qasper", tmp_path)


# -- names ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "wobble",
            "unknown task 'wobble': known are needles, ruler, longbench, loogle, babilong, infinitebench, jsonl",
        ),
        ("longbench:", "tasks are written as longbench:qasper"),
        ("ruler,,", "tasks are written as longbench:qasper"),
        ("ruler,ruler", "the task ruler comes twice"),
        ("longbench:wobble", "longbench has no set 'wobble': there are narrativeqa, qasper, "),
        ("babilong:1k", "babilong has no set '1k': there are 0k/qa1"),
        ("ruler:4096/wobble", "ruler has no set '4096/wobble': sets of files are LENGTH/SET"),
        ("ruler:qa_1", "ruler:qa_1 is made from squad.json or dev-v2.0.json: --data-dir names its folder"),
        ("ruler:4096/vt", "ruler:4096/vt is read from files: --data-dir names their folder"),
        ("jsonl", "the task jsonl wants a file: jsonl:my.jsonl"),
        ("ruler:vt,ruler:cwe+vt", "the set ruler:vt comes twice"),
    ],
)
def test_a_name_that_is_none_is_refused(text: str, reason: str) -> None:
    with pytest.raises(OptionError, match=re.escape(reason)):
        load_sets(parse_tasks(text), TaskRequest())


@pytest.mark.parametrize("name", TASKS)
def test_every_task_says_what_it_is_and_where_it_comes_from(name: str) -> None:
    task = TASKS[name]
    assert task.name == name
    assert task.about
    assert task.source
    assert all(facts.metric in METRICS for facts in getattr(task, "facts", {}).values())


# -- the hub --------------------------------------------------------------------------------------------------------


def test_without_a_folder_sets_come_from_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def load_dataset(repo: str, config: str | None, split: str) -> list[dict[str, Any]]:
        calls.append((repo, config, split))
        return [{**BABI[0], **LONG, "input": "Where?", "qa_pairs": [{"Q": "Q?", "A": "A"}], "answer": "garden"}]

    monkeypatch.setattr(files, "needed", lambda module, what, extra="eval": SimpleNamespace(load_dataset=load_dataset))
    for name in ("longbench:qasper", "loogle:shortdep_qa", "babilong:2k/qa3", "infinitebench:passkey"):
        (each,) = load_sets(parse_tasks(name), TaskRequest())
        assert len(each.questions(SimpleNamespace())) == 1  # type: ignore[arg-type]
    assert calls == [
        ("Xnhyacinth/LongBench", "qasper", "test"), ("bigai-nlco/LooGLE", "shortdep_qa", "test"),
        ("RMT-team/babilong", "2k", "qa3"), ("xinrongzhang2022/InfiniteBench", None, "passkey"),
    ]  # fmt: skip


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\n network")

    monkeypatch.setattr(files, "needed", lambda module, what, extra="eval": SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(OptionError, match=r"\(qasper\) cannot be fetched from the hub: no network; --data-dir names"):
        load_sets(parse_tasks("longbench:qasper"), TaskRequest())

"""LooGLE (arXiv 2311.04939): questions, cloze texts and summaries on documents of 2022 and later.

The wording is ours. Answers are measured by F1 of their words, as in HeadKV's table of LooGLE, and not by LooGLE's own
BLEU, METEOR and judges; cloze texts by its exact match. The questions on long dependencies can be taken by type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from headprobe.errors import shown
from headprobe.evaluation.tasks.files import Asked, DataRow, FileTask, HubPlace, SetFacts

_QUESTION = (
    "Read this document, then answer a question about it in as few words as you can.\n\n{context}\n\n"
    "The document ends here. Answer from it alone.\n\nQuestion: {input}\nAnswer:"
)
_CLOZE = (
    "Read this document. In the text behind it names are hidden as <mask-0>, <mask-1> and so on.\n\n{context}\n\n"
    "The document ends here. Which name is hidden behind each mask? Answer with a JSON object alone, such as "
    '{"<mask-0>": "a name", "<mask-1>": "another name"}.\n\nText: {input}\nNames:'
)
_SUMMARY = "Read this document and sum it up.\n\n{context}\n\nThe document ends here. Its summary:"
TYPES = {
    "comprehension": "comprehension_and_reasoning",
    "retrieval": "multiple_information_retrieval",
    "timeline": "timeline_reorder",
    "computation": "computation",
}
FACTS = {
    "shortdep_qa": SetFacts(_QUESTION, "qa_f1", 300),
    "longdep_qa": SetFacts(_QUESTION, "qa_f1", 500),
    **{f"longdep_{kind}": SetFacts(_QUESTION, "qa_f1", 500) for kind in TYPES},
    "shortdep_cloze": SetFacts(_CLOZE, "cloze", 50),
    "summarization": SetFacts(_SUMMARY, "rouge_l", 500),
}


def file_of(name: str) -> str:
    """The file (and hub configuration) that a set is part of."""
    return "longdep_qa" if name.removeprefix("longdep_") in TYPES else name


def read(row: DataRow, name: str) -> Iterator[Asked]:
    """A document with its questions (`input`, `qa_pairs`), or one question (`context`, `question`, `answer`)."""
    context = row.text("input", "context", blank=False)
    if name == "summarization":
        summary = row.text("output", "answer", blank=False)
        yield Asked(context, "", (summary,))
        return
    for pair in _pairs(row):
        if _is_of(pair, name):
            yield Asked(context, _text(row, pair, "Q"), _answers(row, pair, name))


def _pairs(row: DataRow) -> list[Mapping[str, Any]]:
    if "qa_pairs" not in row.fields:
        return [{"Q": row.text("question"), "A": row.literal("answer") if _is_object(row) else row.get("answer"),
                 "type": row.fields.get("task") or row.fields.get("type")}]  # fmt: skip
    pairs = row.literal("qa_pairs")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise row.fault(f"'qa_pairs' is {shown(pairs)}, need a list of objects")
    return pairs


def _is_object(row: DataRow) -> bool:
    answer = row.fields.get("answer")
    return isinstance(answer, str) and answer.lstrip().startswith("{")


def _is_of(pair: Mapping[str, Any], name: str) -> bool:
    kind = TYPES.get(name.removeprefix("longdep_"))
    given = str(pair.get("type") or "").lower().replace(" ", "_").replace("&", "and")
    return kind is None or given == kind


def _text(row: DataRow, pair: Mapping[str, Any], name: str) -> str:
    value = pair.get(name)
    if not isinstance(value, str) or not value.strip():
        raise row.fault(f"{name!r} of a pair is {shown(value)}, need a text")
    return value


def _answers(row: DataRow, pair: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = pair.get("A")
    if name != "shortdep_cloze":
        return (_text(row, pair, "A"),)
    if not isinstance(value, dict) or not value or not all(isinstance(each, str) for each in value.values()):
        raise row.fault(f"'A' of a pair is {shown(value)}, need an object of masks and names")
    return tuple(f"{mask}: {hidden}" for mask, hidden in value.items())


LOOGLE = FileTask(
    name="loogle",
    about="questions, cloze texts and summaries on documents of more than 20,000 tokens",
    source="LooGLE, arXiv 2311.04939, huggingface.co/datasets/bigai-nlco/LooGLE (CC-BY-SA-4.0)",
    facts=FACTS,
    names=lambda name: {
        "summarization": ("summarization.jsonl", "longdep_summarization.jsonl"),
    }.get(name, (f"{file_of(name)}.jsonl",)),
    hub=lambda name: HubPlace("bigai-nlco/LooGLE", file_of(name), "test"),
    read=read,
    default=("shortdep_qa", "longdep_qa", "shortdep_cloze", "summarization"),
)

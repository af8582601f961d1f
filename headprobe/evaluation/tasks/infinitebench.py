"""InfiniteBench (arXiv 2402.13718): twelve sets on texts of 100,000 tokens and more.

The wording is ours, and so is the metric of summaries (ROUGE-L of this package). Answer lengths are the published ones.
"""

from __future__ import annotations

from collections.abc import Iterator

from headprobe.errors import shown
from headprobe.evaluation.tasks.files import Asked, DataRow, FileTask, HubPlace, SetFacts, answers_in

_BOOK = "Read this book, then answer a question about it as briefly as you can.\n\n{context}\n\n"
_FIND = "Something that matters is hidden in a long text that does not. Find it and keep it in mind.\n\n{context}\n\n"
FACTS = {
    "passkey": SetFacts(_FIND + "{input}\nThe pass key is", "first_digits", 6),
    "number_string": SetFacts(_FIND + "{input}\nThe sequence of digits is", "first_digits", 12),
    "kv_retrieval": SetFacts(
        "Find the value of a key in this JSON object.\n\n{context}\n\n{input}", "one_word", 50),
    "longbook_sum_eng": SetFacts("Sum this book up.\n\n{context}\n\nSummary:", "rouge_l", 1200),
    "longbook_choice_eng": SetFacts(
        "Read this book, then choose the right answer to a question about it.\n\n{context}\n\n{input}\n\n"
        "Answer with one letter, A, B, C or D:", "choice", 40),
    "longbook_qa_eng": SetFacts(_BOOK + "Question: {input}\nAnswer:", "qa_f1", 40),
    "longbook_qa_chn": SetFacts(
        "请先读下面这本书，再回答问题，回答越短越好。\n\n{context}\n\n问题：{input}\n回答：", "characters_f1", 40),
    "longdialogue_qa_eng": SetFacts(
        "In this dialogue the name of one speaker is hidden as $$MASK$$.\n\n{context}\n\nThe dialogue ends here. "
        "Which name is hidden? Answer with the name alone.\nName:", "one_word", 40),
    "math_find": SetFacts("{input}\n\n{context}\n\n{input}\nAnswer with the number alone:", "first_number", 3),
    "math_calc": SetFacts(
        "Work this expression out step by step, from left to right, and write down every result in between as a list "
        "such as [1, 3, 4].\n\n{context}\n\nResults:", "numbers_in_order", 30000),
    "code_run": SetFacts(
        "Below are simple functions that call each other.\n\n{context}\n\n{input} Answer with the number alone:",
        "last_number", 5),
    "code_debug": SetFacts(
        "One function of this program holds an obvious error that was put there on purpose. Find it.\n\n{context}\n\n"
        "{input}\n\nAnswer with one letter, A, B, C or D:", "choice", 5),
}  # fmt: skip


def read(row: DataRow, name: str) -> Iterator[Asked]:
    """One row: `context` (`content`), `input`, `answer`, and `options` where there is a choice."""
    question, answers = row.text("input"), answers_in(row, "answer")
    if name in ("longbook_choice_eng", "code_debug"):
        options = row.texts("options")
        if len(options) != 4:
            raise row.fault(f"'options' is {shown(list(options))}, need 4 of them")
        question = "\n".join([question, *(f"{letter}. {text}" for letter, text in zip("ABCD", options, strict=True))])
        letters = [letter for letter, text in zip("ABCD", options, strict=True) if text in answers]
        if not letters:
            raise row.fault(f"'answer' is {shown(list(answers))}, none of the options")
        answers = (*letters, *(answer for answer in answers if answer not in "ABCD"))
    yield Asked(row.text("context", "content", blank=False), question.strip(), answers)


INFINITEBENCH = FileTask(
    name="infinitebench",
    about="twelve sets on texts of 100,000 tokens: keys, books, dialogues, arithmetic, code",
    source="InfiniteBench, arXiv 2402.13718, huggingface.co/datasets/xinrongzhang2022/InfiniteBench (Apache-2.0)",
    facts=FACTS,
    names=lambda name: (f"{name}.jsonl",),
    hub=lambda name: HubPlace("xinrongzhang2022/InfiniteBench", None, name),
    read=read,
    default=tuple(name for name in FACTS if name != "math_calc"),
)

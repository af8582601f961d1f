"""LongBench (arXiv 2308.14508): 21 sets of questions on long texts, English, Chinese and code.

Structure, answer lengths, metrics and the cut are LongBench's; the wording is ours. Its own wording can be given with
`--templates`, as the file of prompts that LongBench ships.
"""

from __future__ import annotations

from collections.abc import Iterator

from headprobe.evaluation.tasks.files import Asked, DataRow, FileTask, HubPlace, SetFacts, answers_in

HUB = "Xnhyacinth/LongBench"  # the files of THUDM/LongBench as tables, which `datasets` reads without a script

_BRIEF = "Answer in as few words as you can and add nothing else."
_PASSAGES = (
    f"Below are several passages, and behind them a question about them. {_BRIEF}\n\n"
    f"Passages:\n{{context}}\n\nUse the passages above. {_BRIEF}\n\nQuestion: {{input}}\nAnswer:"
)
_PAPER = (
    "Answer with a single phrase or sentence from what the article says. Where it does not say, write "
    '"unanswerable"; to a question of yes or no, write "yes", "no" or "unanswerable". Explain nothing.'
)
_STORY = "Answer the question in one short phrase, without any explanation."

FACTS = {
    "narrativeqa": SetFacts(
        f"Below is a story, a novel or a script, and a question about it. {_STORY}\n\nStory: {{context}}\n\n"
        f"The story ends here. {_STORY}\n\nQuestion: {{input}}\n\nAnswer:", "qa_f1", 128),
    "qasper": SetFacts(
        f"Below is a scientific article and a question about it. {_PAPER}\n\nArticle: {{context}}\n\n"
        f"The article ends here. {_PAPER}\n\nQuestion: {{input}}\n\nAnswer:", "qa_f1", 128),
    "multifieldqa_en": SetFacts(
        f"Read this text, then answer a question about it in a few words.\n\n{{context}}\n\n"
        f"The text ends here. {_BRIEF}\n\nQuestion: {{input}}\nAnswer:", "qa_f1", 64),
    "multifieldqa_zh": SetFacts(
        "请先读下面这篇文章，再用几个词回答问题。\n\n{context}\n\n文章到此为止。"
        "请根据文章回答，只写答案，不要写别的话。\n\n问题：{input}\n回答：", "qa_f1_zh", 64),
    "hotpotqa": SetFacts(_PASSAGES, "qa_f1", 32),
    "2wikimqa": SetFacts(_PASSAGES, "qa_f1", 32),
    "musique": SetFacts(_PASSAGES, "qa_f1", 32),
    "dureader": SetFacts(
        "下面是几篇文章，请根据它们回答后面的问题。\n\n文章：{context}\n\n文章到此为止，请回答问题。\n\n"
        "问题：{input}\n回答：", "rouge_zh", 128),
    "gov_report": SetFacts(
        "Below is a report of a government agency. Sum it up on one page.\n\nReport:\n{context}\n\n"
        "The report ends here. Sum it up on one page.\n\nSummary:", "rouge_l", 512),
    "qmsum": SetFacts(
        "Below are the minutes of a meeting and a question or task about it. Answer in one or a few sentences.\n\n"
        "Minutes:\n{context}\n\nThe minutes end here. Answer in one or a few sentences.\n\nQuestion: {input}\nAnswer:",
        "rouge_l", 512),
    "multi_news": SetFacts(
        "Below are several news items. Sum all of them up on one page.\n\nNews:\n{context}\n\n"
        "The news end here. Sum all of them up on one page.\n\nSummary:", "rouge_l", 512),
    "vcsum": SetFacts(
        "下面是一次会议的记录，请写一段总结，把会议内容概括出来。\n\n会议记录：\n{context}\n\n会议总结：",
        "rouge_zh", 512),
    "trec": SetFacts(
        "Say of which type the last question is. These examples show the types.\n\n{context}\n{input}",
        "classification", 64, chat=False, first_line=True),
    "triviaqa": SetFacts(
        "Answer the last question from its passage; give the answer alone. These examples show how.\n\n"
        "{context}\n\n{input}", "qa_f1", 32, chat=False, first_line=True),
    "samsum": SetFacts(
        "Sum up the last dialogue in a few short sentences. These examples show how.\n\n{context}\n\n{input}",
        "rouge_l", 128, chat=False, first_line=True),
    "lsht": SetFacts(
        "请判断最后一则新闻的类别。下面的例子说明有哪些类别。\n\n{context}\n{input}",
        "classification", 64, chat=False, first_line=True),
    "passage_count": SetFacts(
        "Below are paragraphs from an encyclopedia, some of which come more than once. Read them all and find out how "
        "many different ones there are.\n\n{context}\n\nHow many different paragraphs are there? Answer with the "
        "number alone, such as 1, 2 or 3.\n\nNumber of different paragraphs:", "count", 32),
    "passage_retrieval_en": SetFacts(
        "Below are 30 paragraphs from an encyclopedia, and a summary of one of them. Say which one it sums up.\n\n"
        "{context}\n\nThe summary is:\n\n{input}\n\nAnswer with the paragraph's number, such as \"Paragraph 1\" or "
        "\"Paragraph 2\".\n\nThe summary is of:", "retrieval", 32),
    "passage_retrieval_zh": SetFacts(
        "下面有若干段文字，以及其中一段的摘要。请找出摘要说的是哪一段。\n\n{context}\n\n摘要如下：\n\n{input}\n\n"
        "请只写这一段的编号，例如“段落1”或“段落2”。\n\n答案：", "retrieval_zh", 32),
    "lcc": SetFacts(
        "Complete this program with its next line.\n{context}The next line is:\n", "code_sim", 64, chat=False),
    "repobench-p": SetFacts(
        "Complete this program with its next line.\n{context}{input}The next line is:\n", "code_sim", 64, chat=False),
}  # fmt: skip
PAPER_SETS = ("narrativeqa", "qasper", "multifieldqa_en", "hotpotqa", "2wikimqa", "musique")  # of HeadKV's tables


def read(row: DataRow, name: str) -> Iterator[Asked]:
    """One row: `context`, `input`, `answers`, and `all_classes` where there are such."""
    classes = row.fields.get("all_classes")
    yield Asked(
        context=row.text("context", blank=False),
        question=row.text("input", "question"),
        answers=answers_in(row, "answers"),
        classes=row.texts("all_classes") if classes else _none(row, name),
    )


def _none(row: DataRow, name: str) -> tuple[str, ...]:
    if FACTS[name].metric == "classification":
        raise row.fault("'all_classes' is missing, by which the answer is measured")
    return ()


LONGBENCH = FileTask(
    name="longbench",
    about="21 sets of questions on long texts: QA, summaries, few-shot, retrieval, code; English and Chinese",
    source="LongBench, arXiv 2308.14508, github.com/THUDM/LongBench (MIT; its texts as their own sources say)",
    facts=FACTS,
    names=lambda name: (f"{name}.jsonl", f"data/{name}.jsonl"),
    hub=lambda name: HubPlace(HUB, name, "test"),
    read=read,
)

"""Your own questions: a `.jsonl` file with a context, a question and its answers in each line.

    {"context": "...", "question": "...", "answers": ["...", "..."], "metric": "qa_f1", "max_new_tokens": 32}

`metric` and `max_new_tokens` may be left out; `answer` is the same as `answers` with one text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from headprobe.errors import OptionError
from headprobe.evaluation.metrics import metric_named
from headprobe.evaluation.task import MOST_NEW_TOKENS, TaskQuestion, TaskRequest, TaskSet
from headprobe.evaluation.tasks.files import (
    Asked,
    DataRow,
    SetFacts,
    answers_in,
    file_set,
    question_of,
    read_rows,
)
from headprobe.home import in_home

DEFAULT = SetFacts(
    "Read this text, then answer a question about it in as few words as you can.\n\n{context}\n\n"
    "The text ends here.\n\nQuestion: {input}\nAnswer:",
    "qa_f1",
    64,
)
FIELDS = ("context", "question", "input", "answers", "answer", "metric", "max_new_tokens", "id", "classes")


@dataclass(frozen=True)
class OwnTask:
    """`jsonl:FILE`; a name without a folder is looked for in `--data-dir` too."""

    name: str = "jsonl"
    about: str = "questions of your own, from jsonl:FILE"
    source: str = "the file that is named"
    sets: tuple[str, ...] = ()

    def load(self, asked: TaskRequest) -> list[TaskSet]:
        """The one set of the file. Raises as `Task.load`."""
        if not asked.wanted:
            raise OptionError("the task jsonl wants a file: jsonl:my.jsonl")
        path = _found(asked)
        name = f"jsonl:{path.stem}"
        template = asked.template("jsonl", path.stem, DEFAULT.template)
        rows = islice(read_rows(path), asked.limit)
        questions = tuple(_question(f"{name}/{number}", template, row) for number, row in enumerate(rows, 1))
        if not questions:
            raise OptionError(f"{path} holds no question")
        return [file_set(name, DEFAULT, questions)]


def _found(asked: TaskRequest) -> Path:
    path = in_home(asked.wanted)
    if asked.data_dir is not None and not path.is_file():
        path = asked.data_dir / asked.wanted
    return path


def _question(name: str, template: str, row: DataRow) -> TaskQuestion:
    unknown = [field for field in row.fields if field not in FIELDS]
    if unknown:
        raise row.fault(f"unknown field {unknown[0]!r:.60}: known are {', '.join(FIELDS)}")
    asked = Asked(
        context=row.text("context", blank=False),
        question=row.text("question", "input", blank=False),
        answers=answers_in(row, "answers", "answer"),
        classes=row.texts("classes") if "classes" in row.fields else (),
    )
    return replace(question_of(name, template, asked), metric=_metric(row), max_new_tokens=_new_tokens(row))


def _metric(row: DataRow) -> str | None:
    if "metric" not in row.fields:
        return None
    try:
        metric = metric_named(row.fields["metric"])
    except OptionError as error:
        raise row.fault(str(error)) from None
    if metric.name in ("classification", "only_label") and "classes" not in row.fields:
        raise row.fault(f"the metric {metric.name} goes by 'classes', which is missing")
    return metric.name


def _new_tokens(row: DataRow) -> int | None:
    number = row.fields.get("max_new_tokens")
    if number is None:
        return None
    if type(number) is not int or not 1 <= number <= MOST_NEW_TOKENS:
        raise row.fault(f"'max_new_tokens' is {number!r:.40}, need 1 to {MOST_NEW_TOKENS}")
    return number


OWN = OwnTask()

"""A task: prompts with known answers, a metric, and what it is made of; and the registry of all tasks.

A task is one object in one file. It reads or makes its sets (`load`), and each set gives questions: text before the
context, the context, text behind it, and the right answers. How they become tokens that fit into a model's window is
the same for all (`headprobe.evaluation.task_prompts`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headprobe.errors import FileFormatError, OptionError
from headprobe.evaluation.metrics import metric_named
from headprobe.registry import LatePart, Registry
from headprobe.scores.files import file_bytes
from headprobe.scores.strict_json import parse

if TYPE_CHECKING:
    from headprobe.models.loading import LoadedModel

MOST_NEW_TOKENS = 2**16
CONTEXT, INPUT = "{context}", "{input}"


@dataclass(frozen=True)
class TaskQuestion:
    """One prompt: `head`, `context` and `tail` as one text, and behind it, outside a chat message, `lead`.

    `answers`: at least one; `classes`: all that could be answered, for metrics that go by it; `metric` and
    `max_new_tokens` where they differ from the set's; `cluster`: what intervals draw together, such as questions on one
    text. `input_ids`: the prompt as tokens, for a task that encodes for itself, and of these the first
    `context_tokens` are the context. Raises `ValueError` for no answer, or empty ones only.
    """

    id: str
    context: str
    answers: tuple[str, ...]
    head: str = ""
    tail: str = ""
    lead: str = ""
    classes: tuple[str, ...] = ()
    metric: str | None = None
    max_new_tokens: int | None = None
    cluster: str = ""
    input_ids: tuple[int, ...] = ()
    context_tokens: int | None = None

    def __post_init__(self) -> None:
        if not any(answer.strip() for answer in self.answers):
            raise ValueError("there is no answer")

    @property
    def text(self) -> str:
        """What goes into one message."""
        return f"{self.head}{self.context}{self.tail}"


@dataclass(frozen=True, eq=False)
class TaskSet:
    """A set of questions that are measured alike.

    `name`: as in `longbench:qasper`; `metric`: a name of `METRICS`; `max_new_tokens` of an answer; `questions(loaded)`
    gives them, where they are made for a model (to a length in its tokens) by way of its tokenizer; `chat`: whether
    they go through the tokenizer's chat template where it has one; `first_line`: only the first line of an answer
    counts; `cut`: which part is left out of a prompt that is longer than the window, `middle` or `left`.
    """

    name: str
    metric: str
    max_new_tokens: int
    questions: Callable[[LoadedModel], Sequence[TaskQuestion]]
    chat: bool = True
    first_line: bool = False
    cut: str = "middle"

    def __post_init__(self) -> None:
        if not 1 <= self.max_new_tokens <= MOST_NEW_TOKENS:
            raise OptionError(f"{self.name}: {self.max_new_tokens} new tokens, need 1 to {MOST_NEW_TOKENS}")


@dataclass(frozen=True)
class TaskRequest:
    """What is asked of a task: `wanted` is what stands behind its name and a colon (`qasper+lcc`, a file).

    `data_dir`: where files lie (None: from the hub, where the task knows a place); `limit`: at most N questions
    of each set, the first ones; `lengths` in tokens and `seed`: for tasks that make their prompts; `haystack`: their
    background text; `templates`: wordings by set that take the place of the task's own; `chat`: use chat templates.
    """

    wanted: str = ""
    data_dir: Path | None = None
    limit: int | None = None
    lengths: tuple[int, ...] | None = None
    seed: int = 0
    haystack: str = "all"
    templates: Mapping[str, str] = field(default_factory=dict)
    chat: bool = True

    def sets(self, known: Sequence[str], noun: str, default: Sequence[str] | None = None) -> tuple[str, ...]:
        """The sets that are asked for, each once: those named, else `default`, else all that are known.

        Raises `OptionError` for one that the task `noun` does not have.

        >>> TaskRequest("b+a").sets(["a", "b"], "letters"), TaskRequest().sets(["a", "b"], "letters")
        (('b', 'a'), ('a', 'b'))
        """
        if not self.wanted:
            return tuple(known if default is None else default)
        names = tuple(dict.fromkeys(part.strip() for part in self.wanted.split("+")))
        for name in names:
            if name not in known:
                raise OptionError(f"{noun} has no set {name!r:.60}: there are {', '.join(known)}")
        return names

    def template(self, task: str, name: str, own: str) -> str:
        """The wording of a set: the one given for it, else the task's `own`."""
        return self.templates.get(f"{task}:{name}", self.templates.get(name, own))


class Task(Protocol):
    """What every task has. `about`: what it asks, in a line; `source`: where its texts come from, and their licence;
    `sets`: the names of its sets, empty where files decide."""

    name: str
    about: str
    source: str
    sets: tuple[str, ...]

    def load(self, asked: TaskRequest) -> Sequence[TaskSet]:
        """The sets that are asked for; files are read now, before any model is loaded.

        Raises `OptionError` (set, file, metric, option) and `FileFormatError` (file, line, reason).
        """


TASKS: Registry[Task] = Registry(
    "headprobe.tasks",
    "task",
    {
        "needles": LatePart("headprobe.evaluation.tasks.needles:NEEDLES"),
        "ruler": LatePart("headprobe.evaluation.tasks.ruler:RULER"),
        "longbench": LatePart("headprobe.evaluation.tasks.longbench:LONGBENCH"),
        "loogle": LatePart("headprobe.evaluation.tasks.loogle:LOOGLE"),
        "babilong": LatePart("headprobe.evaluation.tasks.babilong:BABILONG"),
        "infinitebench": LatePart("headprobe.evaluation.tasks.infinitebench:INFINITEBENCH"),
        "jsonl": LatePart("headprobe.evaluation.tasks.own:OWN"),
    },
    LatePart("headprobe.evaluation.task:Task"),
)


def parse_tasks(text: str) -> tuple[tuple[Task, str], ...]:
    """Tasks with what is wanted of each, from `longbench:qasper+lcc,ruler,jsonl:my.jsonl`.

    Raises `OptionError` for an unknown task, an empty name, or one that comes twice.

    >>> [(task.name, wanted) for task, wanted in parse_tasks("ruler,jsonl:a.jsonl")]
    [('ruler', ''), ('jsonl', 'a.jsonl')]
    """
    found = []
    for part in text.split(","):
        name, colon, wanted = (each.strip() for each in part.partition(":"))
        if not name or (colon and not wanted):
            raise OptionError(f"tasks are written as longbench:qasper+lcc,ruler; got {text!r:.80}")
        found.append((TASKS[name], wanted))
    twice = [f"{task.name}:{wanted}".rstrip(":") for task, wanted in found if found.count((task, wanted)) > 1]
    if twice:
        raise OptionError(f"the task {twice[0]} comes twice")
    return tuple(found)


def load_sets(tasks: Sequence[tuple[Task, str]], asked: TaskRequest) -> tuple[TaskSet, ...]:
    """The sets of all tasks. Raises as `Task.load`, and `OptionError` for a set that comes twice, or whose metric is
    not there."""
    sets: dict[str, TaskSet] = {}
    for task, wanted in tasks:
        given = TaskRequest(**{**vars(asked), "wanted": wanted})
        for each in task.load(given):
            metric_named(each.metric)
            if each.name in sets:
                raise OptionError(f"the set {each.name} comes twice")
            sets[each.name] = each
    return tuple(sets.values())


def read_templates(path: Path) -> dict[str, str]:
    """Wordings by set from a JSON object such as `{"qasper": "... {context} ... {input} ..."}`.

    So LongBench's own file of prompts can be given as it is. Raises `FileFormatError` for anything else, and for a
    wording without `{context}`, or with it twice.
    """
    data: Any = parse(file_bytes(path), path)
    if not isinstance(data, dict) or not data:
        raise FileFormatError(f'expected {{"SET": "... {CONTEXT} ... {INPUT} ..."}}', path)
    for name, text in data.items():
        if not isinstance(text, str) or text.count(CONTEXT) != 1:
            raise FileFormatError(f"the template of {name!r:.60} must be a text that holds {CONTEXT} once", path)
    return dict(data)


def parts_of(template: str, question: str) -> tuple[str, str]:
    """What stands before and behind the context in a wording, with `question` in the place of `{input}`.

    >>> parts_of("Read: {context}\\nAsked: {input}", "Who?")
    ('Read: ', '\\nAsked: Who?')
    """
    head, _, tail = template.partition(CONTEXT)
    return head.replace(INPUT, question), tail.replace(INPUT, question)

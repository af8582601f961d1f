"""BABILong (arXiv 2406.10149): facts of bAbI scattered over books; one word answers the question about them.

The wording and the examples are ours. A response is right when its first sentence names the right answer and no other
answer that the set has (without those that the question names itself), as in the published rule; which answers a set
has is taken from its own file, where the published code lists them for five sets.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from headprobe.evaluation.tasks.files import Asked, DataRow, FileTask, HubPlace, SetFacts, answers_in

LENGTHS = ("0k", "1k", "2k", "4k", "8k", "16k", "32k", "64k", "128k", "256k", "512k", "1M", "2M", "10M")
NUMBERS = range(1, 21)

_ASKED = {
    1: "where a person is; what was said of that person last counts. The answer is one word, the place.",
    2: "where a thing is; who has it carries it along. The answer is one word, the place.",
    3: "where a thing was before it came to another place. The answer is one word, the place.",
    4: "which place lies on which side of another. The answer is one word, the place.",
    5: "who gave what to whom. The answer is one word, the person or the thing.",
}
_OTHER = "the facts. The answer is one word, or words with commas between them."
_EXAMPLES = {
    1: ("Tom went to the kitchen. Ann moved to the garden. Tom went to the office.", "Where is Tom?", "office"),
    2: ("Ann took the milk. Ann moved to the garden.", "Where is the milk?", "garden"),
    3: ("Ann took the milk. Ann moved to the garden. Ann went to the kitchen.",
        "Where was the milk before the kitchen?", "garden"),
    4: ("The garden is west of the office. The office is west of the kitchen.", "What is west of the office?",
        "garden"),
    5: ("Ann gave the milk to Tom.", "Who gave the milk?", "Ann"),
}  # fmt: skip


def template(number: int) -> str:
    """The wording of the set `qa<number>`."""
    asked = _ASKED.get(number, _OTHER)
    text = "Facts about people and things are scattered over the text below, which has nothing to do with them. They "
    text += f"are needed to answer a question about {asked} Write nothing else.\n\n"
    if number in _EXAMPLES:
        facts, question, answer = _EXAMPLES[number]
        text += f"An example. Facts: {facts}\nQuestion: {question}\nAnswer: {answer}\n\n"
    return f"{text}Text:\n{{context}}\n\nThe text ends here.\n\nQuestion: {{input}}\nAnswer:"


FACTS = {
    f"{length}/qa{number}": SetFacts(template(number), "only_label", 20) for length in LENGTHS for number in NUMBERS
}


def read(row: DataRow, name: str) -> Iterator[Asked]:
    """One row: `input` (the text), `question`, `target`."""
    yield Asked(row.text("input", blank=False), row.text("question", blank=False), answers_in(row, "target"))


def settle(found: list[Asked]) -> list[Asked]:
    """The questions, each with all answers of the set but for those that it names itself."""
    labels = sorted({part.strip() for each in found for answer in each.answers for part in answer.split(",")})
    return [replace(each, classes=_not_in(labels, each.question)) for each in found]


def _not_in(labels: Sequence[str], question: str) -> tuple[str, ...]:
    return tuple(label for label in labels if label.lower() not in question.lower())


def places(name: str) -> tuple[str, ...]:
    """Where a set's file may lie: as `datasets` saves it, or as JSON lines."""
    length, task = name.split("/")
    return (f"{name}.jsonl", f"{name}/data-00000-of-00001.arrow", f"{length}/{task}.arrow", f"{task}_{length}.jsonl")


BABILONG = FileTask(
    name="babilong",
    about="facts scattered over books, and one word that follows from them; sets such as 2k/qa1",
    source="BABILong, arXiv 2406.10149, huggingface.co/datasets/RMT-team/babilong (Apache-2.0; bAbI BSD, PG19 public)",
    facts=FACTS,
    names=places,
    hub=lambda name: HubPlace("RMT-team/babilong", *name.split("/")),
    read=read,
    settle=settle,
    default=("1k/qa1", "1k/qa2"),
)

"""What an evaluation states before it runs, so that the rows of its parts become a summary without the model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from headprobe.evaluation.trials import Row


@dataclass(frozen=True)
class EvaluationFrame:
    """`stated`: what the summary says besides results, as JSON; `prompts`: ids in the order in which they are asked;
    `answers`: what each of them goes through, as the end of a trial's id (`snapkv|64`)."""

    stated: dict[str, Any]
    prompts: tuple[str, ...]
    answers: tuple[str, ...]

    def record(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> EvaluationFrame:
        """What `record` gave. Raises `ValueError` for what is no such thing."""
        try:
            found = cls(dict(record["stated"]), tuple(record["prompts"]), tuple(record["answers"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not what an evaluation knows beforehand ({error})") from None
        if not all(isinstance(name, str) for name in (*found.prompts, *found.answers)):
            raise ValueError("not what an evaluation knows beforehand (names that are no texts)")
        return found

    def trials_of(self, prompt: str) -> Iterator[str]:
        """The ids of a prompt's trials."""
        return (f"{prompt}|{answer}" for answer in self.answers)

    @property
    def trials(self) -> list[str]:
        """The ids of all trials, in the order in which they run."""
        return [trial for prompt in self.prompts for trial in self.trials_of(prompt)]

    def is_complete(self, rows: tuple[Row, ...]) -> bool:
        """Whether every trial has given something."""
        return sum(row["error"] is None for row in rows) == len(self.prompts) * len(self.answers)

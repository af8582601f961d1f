"""Needles as a task: how many questions a limit gives, over lengths, depths and needles."""

from __future__ import annotations

from typing import Any

import pytest

from headprobe.evaluation.task import TaskRequest
from headprobe.evaluation.tasks.needles import NEEDLES
from headprobe.models.loading import load_model


@pytest.fixture(scope="module")
def demo() -> Any:
    return load_model("demo", device="cpu", dtype="float32")


@pytest.mark.parametrize(
    ("limit", "questions", "clusters"), [(None, 20, 20), (3, 3, 3), (21, 21, 20), (40, 40, 36), (80, 80, 36)]
)
def test_a_limit_makes_as_many_questions(demo: Any, limit: int | None, questions: int, clusters: int) -> None:
    (found,) = NEEDLES.load(TaskRequest(limit=limit, lengths=(192, 256)))
    made = found.questions(demo)
    assert len(made) == len({question.id for question in made}) == questions
    assert len({question.cluster for question in made}) == clusters
    sizes = [len(question.input_ids or ()) for question in made]
    assert min(sizes) <= 192 < max(sizes) <= 256

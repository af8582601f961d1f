from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from headprobe.probes.haystack import Haystack, load_haystack
from headprobe.probes.needle import Needle, NeedleSet
from headprobe.probes.plan import ProbePlan
from tests.toy_tokenizers import KINDS, toy_tokenizer


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    return toy_tokenizer(request.param)


@pytest.fixture
def byte_bpe() -> PreTrainedTokenizerFast:
    return toy_tokenizer("byte-bpe")


@pytest.fixture(scope="session")
def essays() -> Haystack:
    """The part of the essays that every toy tokenizer knows."""
    whole = load_haystack("essays")
    return Haystack("essays", whole.sha256, whole.paragraphs[:36])


@pytest.fixture
def make_needle() -> Callable[..., Needle]:
    def make(**changes: Any) -> Needle:
        facts = ("Ada is 41 years old.", "Bo is 17 years old.", "Ada keeps a red hen.", "Bo keeps two black cats.")
        fields: dict[str, Any] = {
            "id": "n1", "kind": "reasoning", "relation": "age", "facts": facts, "answer": facts[2],
            "distractor": facts[3], "question": "What does the older one keep?",
        }  # fmt: skip
        return Needle(**{**fields, **changes})

    return make


@pytest.fixture
def make_plan(make_needle: Callable[..., Needle], essays: Haystack) -> Callable[..., ProbePlan]:
    """A plan of `num_needles` made-up needles on the essays, four lengths and five depths unless told."""

    def make(num_needles: int = 3, **changes: Any) -> ProbePlan:
        needles = tuple(make_needle(id=f"n{i}") for i in range(num_needles))
        options: dict[str, Any] = {
            "needles": NeedleSet("mine", "0" * 64, needles), "haystack": essays,
            "lengths": (64, 128, 256, 512), "depths": (0, 25, 50, 75, 100),
        }  # fmt: skip
        return ProbePlan.build(**{**options, **changes})

    return make


@pytest.fixture
def write_needles(tmp_path: Path) -> Callable[..., Path]:
    """Write lines (objects or raw text) as a needle file and return its path."""

    def write(*lines: Any) -> Path:
        path = tmp_path / "mine.jsonl"
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
        path.write_text(text, encoding="utf-8")
        return path

    return write

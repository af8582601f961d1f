"""Several policies share one reading of a prompt and answer as each does alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headprobe.compression.decoding import Sampler
from headprobe.compression.policies import POLICIES, make_policy
from headprobe.errors import NonFiniteError, OptionError
from headprobe.evaluation.questions import CompressedAnswer, CompressionOptions, Question, compressed_answers
from headprobe.models.loading import load_model
from headprobe.scores.score_file import write_score_file
from tests.compression.scores import random_scores
from tests.compression.test_decoding import tokens
from tests.tiny_models import build_tiny_model

QUESTION = Question(tuple(tokens(90, vocabulary=300)[0].tolist()), 70, None, "made up")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


def lasting(answer: CompressedAnswer) -> CompressedAnswer:
    """All but times and memory."""
    return replace(answer, generation=replace(answer.generation, ttft_s=0.0, tokens_per_s=None, peak_bytes=None))


@pytest.mark.parametrize(
    "changes",
    [{}, {"query_agnostic": True}, {"prefill_chunk": 32}, {"sampler": Sampler(seed=5)}, {"budget": None, "ratio": 0.3}],
)
def test_policies_side_by_side_answer_as_each_alone(tmp_path: Path, llama: Any, changes: dict[str, Any]) -> None:
    file = write_score_file(tmp_path / "r2.json", random_scores(llama.geometry))
    options = CompressionOptions(**{"budget": 24, "scores": file, "max_new_tokens": 9} | changes)
    policies = [make_policy(name) for name in POLICIES]
    seen: list[CompressedAnswer] = []
    passes: list[int] = []
    hook = llama.model.register_forward_pre_hook(
        lambda _, args, named: passes.append(named["input_ids"].shape[1]), with_kwargs=True
    )
    together = compressed_answers(llama, QUESTION, policies, options, seen.append)
    hook.remove()
    alone = [compressed_answers(llama, QUESTION, [policy], options)[0] for policy in policies]
    assert [lasting(answer) for answer in together] == [lasting(answer) for answer in alone]
    assert seen == together
    assert passes.count(max(passes)) == 1
    assert all(answer.generation.tokens_per_s is not None for answer in together)


def test_errors_name_the_policy_that_they_are_of(tmp_path: Path, llama: Any) -> None:
    broken = load_model(str(build_tiny_model("llama", tmp_path)), device="cpu")
    broken.model.get_parameter("model.layers.1.self_attn.v_proj.weight").data[0, 0] = float("nan")
    policies = [make_policy("snapkv"), make_policy("full")]
    with pytest.raises(NonFiniteError, match="^snapkv: NaN or infinity in the logits of new token 1"):
        compressed_answers(broken, QUESTION, policies, CompressionOptions(24))
    with pytest.raises(OptionError, match="the policy snapkv needs a budget or a ratio"):
        compressed_answers(llama, QUESTION, policies, CompressionOptions(None))

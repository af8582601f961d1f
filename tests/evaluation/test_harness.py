"""The model class for lm-evaluation-harness, on a task of a local file. Needs the extra `harness`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from headprobe.errors import OptionError
from headprobe.models.loading import load_model
from tests.conftest import ROOT, CliResult
from tests.evaluation.task_parts import CONTEXT, write_lines
from tests.tiny_models import build_tiny_model

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'headprobe[harness]'")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the harness and what it imports

GENERATE = """
task: gates
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: generate_until
doc_to_text: "{{context}}\\nQuestion: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["never said"], max_gen_toks: 6}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSE = """
task: choices
dataset_path: json
dataset_kwargs: {data_files: {test: DATA}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{context}}\\nQuestion: {{question}}\\nAnswer:"
doc_to_choice: ["the red lamp", "the old boat", "key"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("harness")
    records = [{"context": f"{CONTEXT} {n}.", "question": "Where is the key?", "answer": "gate"} for n in range(3)]
    data = write_lines(made / "data.jsonl", *records)
    for name, text in (("gates", GENERATE), ("choices", CHOOSE)):
        (made / f"{name}.yaml").write_text(text.replace("DATA", str(data)))
    return made


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


@pytest.fixture(scope="module")
def harness() -> Any:
    from headprobe.evaluation import harness

    return harness


def evaluated(lm: Any, folder: Path, *tasks: str, **more: Any) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder), include_defaults=False)
    found: dict[str, Any] = lm_eval.simple_evaluate(
        model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, log_samples=True, **more
    )
    return found


def said(found: dict[str, Any], task: str) -> list[Any]:
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["resps"] for sample in samples]


def plain(llama: Any) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=llama.model, tokenizer=llama.tokenizer, max_length=llama.window, batch_size=1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_the_full_cache_answers_as_the_harness_does(llama: Any, harness: Any, folder: Path, batch_size: int) -> None:
    ours = evaluated(harness.CompressedLM(llama, policy="full", batch_size=batch_size), folder, "gates", "choices")
    theirs = evaluated(plain(llama), folder, "gates", "choices")
    assert said(ours, "gates") == said(theirs, "gates")
    for mine, due in zip(said(ours, "choices"), said(theirs, "choices"), strict=True):
        for ((value, greedy),), ((wanted, greedy_too),) in zip(mine, due, strict=True):
            assert value == pytest.approx(wanted, abs=1e-4)
            assert greedy == greedy_too


@pytest.mark.parametrize("policy", ["snapkv", "h2o", "streaming-llm"])
def test_a_policy_decides_over_answers_and_likelihoods(llama: Any, harness: Any, folder: Path, policy: str) -> None:
    """Against a session by hand, token by token."""
    from headprobe.compression.generation import generate
    from headprobe.compression.session import compress

    lm = harness.CompressedLM(llama, policy=policy, budget=16)
    found = evaluated(lm, folder, "gates", "choices")
    full = evaluated(harness.CompressedLM(llama, policy="full"), folder, "gates", "choices")
    assert said(found, "choices") != said(full, "choices")
    prompt = llama.tokenizer(f"{CONTEXT} 0.\nQuestion: Where is the key?\nAnswer:").input_ids
    with compress(llama.model, lm.compression.keywords["policy"], budget=16) as session:
        tokens = generate(session, prompt, max_new_tokens=6, eos_token_ids=[2]).tokens
    assert said(found, "gates")[0] == [[llama.tokenizer.decode(tokens, skip_special_tokens=True)]]
    for choice, ((value, _),) in zip(("the red lamp", "the old boat", "key"), said(found, "choices")[0], strict=True):
        whole = llama.tokenizer(f"{CONTEXT} 0.\nQuestion: Where is the key?\nAnswer: {choice}").input_ids
        assert value == pytest.approx(by_hand(llama, lm, prompt, whole[len(prompt) :]), abs=1e-4)


@torch.inference_mode()
def by_hand(llama: Any, lm: Any, context: Sequence[int], continuation: Sequence[int]) -> float:
    from headprobe.compression.decoding import run_step
    from headprobe.compression.session import compress

    total = 0.0
    with compress(llama.model, lm.compression.keywords["policy"], budget=16) as session:
        cache = session.new_cache()
        logits = run_step(llama.model, cache, torch.tensor([context]))
        for token in continuation:
            total += float(logits[0].float().log_softmax(-1)[token])
            logits = run_step(llama.model, cache, torch.tensor([[token]]))
    return total


def test_arguments_of_the_command_line_are_read(harness: Any, tmp_path: Path) -> None:
    from lm_eval.api.registry import get_model

    source = build_tiny_model("llama", tmp_path)
    arguments = f"pretrained={source},policy=snapkv,budget=24,window=4,dtype=float32,max_length=300"
    lm = get_model("headprobe").create_from_arg_string(arguments, {"batch_size": "2", "device": "cpu"})
    policy = lm.compression.keywords["policy"]
    assert (policy.name, policy.selector.window, lm.compression.keywords["budget"]) == ("snapkv", 4, 24)
    assert (lm.batch_size, lm.max_length) == (2, 300)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"policy": "wobble"}, "unknown policy 'wobble'"), ({"policy": "snapkv"}, "needs a budget or a ratio"),
        ({"policy": "headkv-r2", "budget": 16}, "no head scores of"),
        ({"policy": "snapkv", "budget": 1}, "below the 8"),
        ({"policy": "full", "batch_size": "auto"}, "batch_size is auto: a compressed cache wants a number"),
        ({"policy": "full", "beta": 2.0}, "the policy full has no beta"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_at_once(llama: Any, harness: Any, given: dict[str, Any], reason: str) -> None:
    with pytest.raises(OptionError, match=reason):
        harness.CompressedLM(llama, **given)


def test_the_request_cache_belongs_to_one_policy_and_budget(
    llama: Any, harness: Any, folder: Path, tmp_path: Path
) -> None:
    place = str(tmp_path / "cache")
    first = evaluated(harness.CompressedLM(llama, policy="snapkv", budget=16), folder, "gates", use_cache=place)
    again = evaluated(harness.CompressedLM(llama, policy="snapkv", budget=16), folder, "gates", use_cache=place)
    assert said(again, "gates") == said(first, "gates")
    for other in ({"policy": "snapkv", "budget": 24}, {"policy": "h2o", "budget": 16}, {"policy": "full"}):
        with pytest.raises(OptionError, match="the request cache holds answers of another model, policy or budget"):
            evaluated(harness.CompressedLM(llama, **other), folder, "gates", use_cache=place)
    evaluated(plain(llama), folder, "gates", use_cache=str(tmp_path / "plain"))
    lm = harness.CompressedLM(llama, policy="snapkv", budget=16)
    with pytest.raises(OptionError, match="the request cache holds answers of something else"):
        evaluated(lm, folder, "gates", use_cache=str(tmp_path / "plain"))


def test_perplexity_of_whole_texts_is_refused(llama: Any, harness: Any) -> None:
    with pytest.raises(OptionError, match="perplexity of whole texts says nothing about snapkv"):
        harness.CompressedLM(llama, policy="snapkv", budget=16).loglikelihood_rolling([])


def test_the_command_compares_policies(cli: Callable[..., CliResult], folder: Path, tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path / "models")
    given = ("eval", "harness", "--tasks", "gates,choices", "--include-path", folder, "--model", source)
    done = cli(*given, "--policies", "snapkv", "--budgets", "16,24", "--limit", "2", "-o", "out.json", "--json")
    assert done.code == 0, done.err
    record = json.loads(done.out)
    assert [(row["policy"], row["budget"]) for row in record["rows"] if row["task"] == "gates"] == [
        ("full", None), ("snapkv", 16), ("snapkv", 24),
    ]  # fmt: skip
    assert {row["metric"] for row in record["rows"]} == {"exact_match,none", "acc,none"}
    assert {row["num_questions"] for row in record["rows"]} == {2}
    assert json.loads(Path("out.json").read_text()) == record
    assert cli(*given, "--policies", "full", "-o", "out.json").code == 10
    given = ("eval", "harness", "--tasks", "no-such-task", "--include-path", folder, "--model", source)
    wrong = cli(*given, "--policies", "full")
    assert (wrong.code, wrong.err.count("\n")) == (2, 1)
    assert "the harness has no task 'no-such-task'" in wrong.err


def test_one_import_is_enough_for_the_harness_own_command(folder: Path, tmp_path: Path) -> None:
    source = build_tiny_model("llama", tmp_path)
    code = "import headprobe.evaluation.harness; from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
    arguments = f"pretrained={source},policy=snapkv,budget=16"
    command = [sys.executable, "-W", "ignore", "-c", code, "run", "--model", "headprobe", "--model_args", arguments,
               "--tasks", "gates", "--include_path", str(folder), "--device", "cpu"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "|gates" in done.stdout

"""`headprobe compress` on the bundled model, as a user meets it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from headprobe.models.catalog import bundled_model_folder
from tests.conftest import CliResult
from tests.tiny_models import build_tiny_model

RunCli = Callable[..., CliResult]
SHORT = ("--length", 300, "--max-new-tokens", 24)


def test_with_nothing_but_a_budget_it_answers_a_needle(cli: RunCli) -> None:
    done = cli("compress", "--budget", 64, *SHORT)
    assert done.code == 0, done.err
    assert "expected: " in done.out
    assert "entries kept by each KV head under headkv-r2, 64 on average:" in done.out
    assert "as demo recommends" in done.err


def test_json_is_one_object_with_all_that_was_measured(cli: RunCli) -> None:
    record = json.loads(cli("compress", "--budget", 64, "--json", *SHORT).out)
    assert record["policy"] == "headkv-r2"
    assert record["budget"] == 64
    assert record["kv_entries"] == 64 * 24 == sum(sum(layer) for layer in record["lengths"])
    assert record["kv_bytes"] < record["full_kv_bytes"]
    assert record["correct"] is (record["answer"] == record["expected"])
    assert {"prompt_tokens", "peak_bytes", "ttft_s", "tokens_per_s"} <= set(record)


def test_the_full_cache_answers_right_and_compare_gives_a_list(cli: RunCli) -> None:
    records = json.loads(cli("compress", "--policy", "full", "--compare", "snapkv,h2o", "--json", *SHORT).out)
    assert [record["policy"] for record in records] == ["full", "snapkv", "h2o"]
    assert records[0]["correct"] is True
    assert records[0]["budget"] is None


def test_a_budget_beside_full_is_that_of_the_compared_policies(cli: RunCli) -> None:
    done = cli("compress", "--policy", "full", "--compare", "snapkv", "--budget", 9, "--json", *SHORT)
    assert [record["budget"] for record in json.loads(done.out)] == [None, 9]
    assert "no effect" not in done.err


def test_options_that_no_policy_reads_are_named(cli: RunCli) -> None:
    scores = bundled_model_folder() / "scores" / "demo--r2.json"
    done = cli("compress", "--policy", "full", "--budget", 9, "--scores", scores, "--json", *SHORT)
    assert json.loads(done.out)["budget"] is None
    assert [line for line in done.err.splitlines() if "no effect" in line] == [
        "headprobe: note: --budget 9 has no effect: full keeps all entries",
        f"headprobe: note: --scores {scores} has no effect: full takes no head scores",
    ]
    compared = cli("compress", "--policy", "snapkv", "--compare", "headkv-r2", "--scores", scores, "--json", *SHORT)
    assert "no effect" not in compared.err


def test_a_policy_that_is_named_twice_answers_once(cli: RunCli) -> None:
    given = ("compress", "--policy", "snapkv", "--compare", "snapkv, h2o,h2o", "--budget", 32, "--json", *SHORT)
    assert [record["policy"] for record in json.loads(cli(*given).out)] == ["snapkv", "h2o"]
    other = json.loads(cli(*given, "--sinks", 4).out)
    assert [record["policy"] for record in other] == ["snapkv", "snapkv", "h2o"]  # --sinks is for the first alone


def test_a_text_and_a_question_of_ones_own(cli: RunCli, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The harbour lay still. Mira Voss keeps a red lantern in the attic. Nobody came that day. " * 2)
    done = cli("compress", "--policy", "full", "--prompt", text, "--question", "What does Mira Voss keep?", "--json")
    record = json.loads(done.out)
    assert record["correct"] is None
    assert record["prompt"] == "text.txt"
    assert "Mira Voss keeps a red lantern" in record["answer"]


def test_a_prompt_no_longer_than_the_budget_is_told(cli: RunCli) -> None:
    done = cli("compress", "--budget", 900, *SHORT)
    assert "fits into the budget: nothing is evicted" in done.err


def test_the_context_alone_can_be_compressed(cli: RunCli) -> None:
    record = json.loads(cli("compress", "--budget", 64, "--query-agnostic", "--json", *SHORT).out)
    assert record["kv_entries"] == 64 * 24


def compressed(cli: RunCli, *sampling: object) -> dict[str, Any]:
    done = cli("compress", "--budget", 64, "--json", *SHORT, *sampling)
    assert done.code == 0, done.err
    record: dict[str, Any] = json.loads(done.out)
    return record


def test_tokens_are_drawn_where_that_is_asked_for(cli: RunCli) -> None:
    """At this temperature all of the 2,048 tokens are as likely: that two draws agree is out of the question."""
    hot = ("--temperature", 1e9)
    record, again, other = (compressed(cli, *hot, "--seed", seed) for seed in (0, 0, 1))
    assert record["sampling"] == {"temperature": 1e9, "top_k": 0, "top_p": 1.0, "seed": 0}
    assert other["sampling"]["seed"] == 1
    assert record["answer"] == again["answer"] != other["answer"]


def test_of_one_token_the_draw_is_the_most_likely_whatever_the_temperature(cli: RunCli) -> None:
    greedy, drawn = compressed(cli, "--temperature", 0), compressed(cli, "--temperature", 8, "--top-k", 1)
    assert drawn["sampling"] == {"temperature": 8.0, "top_k": 1, "top_p": 1.0, "seed": 0}
    assert drawn["answer"] == greedy["answer"] != ""
    assert greedy["sampling"] is None
    assert greedy["cuda_graph"] is False
    assert greedy["cuda_graph_refusal"].startswith("graphs need a CUDA device")
    assert greedy["fused_layers"] is False
    assert greedy["fused_layers_refusal"] == "a step is fused on CUDA devices in bfloat16, not on cpu in float32"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--temperature", -1), 2, "a temperature of -1.0 is out of range"),
        (("--top-p", 1.5), 2, "a top-p of 1.5 is out of range"),
        (("--temperature", 0, "--top-k", 5), 2, "--temperature 0 takes the most likely token: leave out --top-k 5"),
        (
            ("--budget", 4, "--window", 8),
            2,
            "a budget of 4 entries per KV head is below the 8 that window and sinks take",
        ),
        (("--budget", 0), 2, "a budget of 0 entries per KV head is too small"),
        (("--ratio", 1.5), 2, "a ratio of 1.5 is out of range"),
        (("--budget", 64, "--ratio", 0.1), 2, "set the same thing"),
        (("--policy", "wishful"), 2, "unknown policy 'wishful': known are full, streaming-llm"),
        (("--policy", "h2o", "--beta", 1.1), 2, "the policy h2o has no beta"),
        (("--beta", 0.5), 2, "beta is 0.5, need more than 1"),
        (("--attention", "flash2"), 2, "the attention kernel flash2 cannot be used here"),
        (("--question", "Why?"), 2, "--question 'Why?' needs a text"),
        (("--length", "3k"), 5, "3072"),
        (("--prompt", "nowhere.txt"), 11, "nowhere.txt"),
        (("--scores", "nowhere.json"), 3, "nowhere.json"),
    ],
)
def test_bad_input_ends_in_one_line(cli: RunCli, arguments: tuple[object, ...], code: int, message: str) -> None:
    done = cli("compress", *arguments, *(() if "--length" in arguments or "--prompt" in arguments else SHORT))
    assert done.code == code, done.err
    assert message in done.err
    assert "Traceback" not in done.err


def test_scores_of_another_model_are_refused(cli: RunCli, tmp_path: Path) -> None:
    from headprobe.geometry import ModelGeometry
    from headprobe.scores.score_file import write_score_file
    from tests.compression.scores import random_scores

    other = write_score_file(tmp_path / "o.json", random_scores(ModelGeometry(2, 4, 2, 8, ("full_attention",) * 2)))
    done = cli("compress", "--budget", 64, "--scores", other, *SHORT)
    assert done.code == 2
    assert "the scores are for 2 layers of 4 query heads, the model has 6 of 8 query and 4 KV heads" in done.err


@pytest.mark.parametrize("command", ["compress", "norms"])
def test_a_model_whose_chat_template_fails_is_used_without_it(cli: RunCli, tmp_path: Path, command: str) -> None:

    folder = build_tiny_model("llama", tmp_path, chat_template="{{ raise_exception('a system message comes first') }}")
    given = [command, "--model", folder, "--length", 500, "--json"]
    given += ["--policy", "full", "--max-new-tokens", 2] if command == "compress" else ["-o", "n.png"]
    refused = cli(*given)
    assert refused.code == 4
    assert refused.err.endswith("(a system message comes first); use --no-chat-template\n")
    done = cli(*given, "--no-chat-template")
    assert done.code == 0, done.err
    assert json.loads(done.out)["prompt"].startswith("needle ")


def test_chat_and_no_chat_template_contradict_each_other(cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("Hello there.")
    done = cli("compress", "--prompt", "p.txt", "--chat", "--no-chat-template")
    assert done.code == 2
    assert "--chat and --no-chat-template contradict each other" in done.err


@pytest.mark.parametrize(
    "options", [("--policy", "snapkv"), ("--policy", "full", "--compare", "snapkv"), ("--temperature", "1")]
)
def test_nan_ends_with_code_7_and_names_policy_and_weight(cli, tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = build_tiny_model("llama", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.self_attn.v_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (tmp_path / "text").write_text("The red lamp stood beside the boat. " * 20)
    policy = options[1] if options[0] == "--policy" else "snapkv"
    given = options if "--policy" in options else ("--policy", "snapkv", *options)
    result = cli("compress", "--model", folder, "--prompt", tmp_path / "text", "--budget", 16, *given)
    assert (result.code, result.out) == (7, "")
    assert result.err.splitlines()[-1] == (
        f"headprobe: error: {policy}: NaN or infinity in the logits of new token 1: the weights themselves hold NaN "
        "(model.layers.1.self_attn.v_proj.weight), the model's files are broken"
    )


def test_quantized_caches_answer_beside_the_plain_one_with_exact_bytes(cli: RunCli) -> None:
    given = ("--policy", "snapkv", "--budget", 64, "--compare", "full", "--kv-cache-dtype", "auto,int8,int4")
    records = json.loads(cli("compress", *given, "--json", *SHORT).out)
    assert [(record["policy"], record["kv_cache_dtype"]) for record in records] == [
        (policy, held) for policy in ("snapkv", "full") for held in ("auto", "int8", "int4")
    ]
    rooms = 6 * 4 * (64 + 64)  # layers x KV heads x (entries and room for new ones)
    entry = {"auto": 2 * 32 * 4, "int8": 2 * (32 + 2), "int4": 2 * (16 + 4)}  # float32; codes and scales
    scales = {"auto": 0, "int8": 2 * 2, "int4": 2 * 4}
    for record in records[:3]:
        held = record["kv_cache_dtype"]
        assert (record["kv_bytes"], record["kv_scale_bytes"]) == (rooms * entry[held], rooms * scales[held])
    assert len({record["full_kv_bytes"] for record in records}) == 1
    assert all(record["correct"] for record in records[3:])
    table = cli("compress", *given[:-1], "int8", *SHORT)
    assert table.out.splitlines()[-2].split()[:3] == ["snapkv", "int8", "64"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--kv-cache-dtype", "fp8"), "kv_cache_dtype is 'fp8', need one of auto, int8, int4"),
        (("--kv-dtype", "int8,"), "kv_cache_dtype is '', need one of auto, int8, int4"),
        (("--kv-dtype", "int4", "--attention", "triton"), "kernel triton reads no int4 entries: take auto or torch"),
    ],
)  # fmt: skip
def test_number_formats_that_cannot_be_are_refused_before_the_model_is_loaded(
    cli: RunCli, given: tuple[str, ...], message: str
) -> None:
    done = cli("compress", "--model", "no-such-model", *given)
    assert done.code == 2
    assert message in done.err

"""Small models of all families against their own eager attention: a few that once failed, and all of them (slow)."""

from __future__ import annotations

import pytest

from benchmarks.survey import Row, survey, table
from headprobe.attention.masks import MaskDesk

OK = ("ok", "ok", "ok", "ok")
ONCE_WRONG = {  # score, compress, norms, knockout; how a refusal begins
    "gpt2": OK,
    "gptj": OK,
    "codegen": OK,
    "gpt_bigcode": OK,
    "modernbert-decoder": OK,
    "mimo_v2_flash": OK,
    "qwen2_moe": OK,  # does not pass its sliding window on
    "llama4_text": ("ok", "Llama4ForCausalLM has chunked-attention", "Llama4ForCausalLM attends in chunks", "ok"),
    "deepseek_v3": ("ok", "DeepseekV3ForCausalLM caches a latent", "ok", "ok"),
    "deepseek_v2": ("ok", "DeepseekV2ForCausalLM caches a latent", "ok", "ok"),
    "jetmoe": ("ok", "layer 0 of JetMoeForCausalLM attends to other keys and values than its cache holds", "ok", "ok"),
    "diffllama": (
        "DiffLlamaForCausalLM calls attention more than once in layer 0",
        "layer 0 of DiffLlamaForCausalLM attends to other keys and values than its cache holds",
        "DiffLlamaForCausalLM calls attention more than once in layer 0",
        "DiffLlamaForCausalLM calls attention more than once in layer 0",
    ),
}


@pytest.mark.parametrize("kind", ONCE_WRONG)
def test_families_that_failed_are_right_or_refused_by_name(kind: str) -> None:
    row = next(survey([kind]), None)
    if row is None:
        pytest.skip(f"this transformers has no {kind} with the attention interface")
    found = (row.score, row.compress, row.norms, row.knockout)
    for verdict, expected in zip(found, ONCE_WRONG[kind], strict=True):
        assert verdict == "ok" if expected == "ok" else verdict.startswith(f"refused: {expected}"), row


def test_a_model_that_makes_masks_of_its_own_is_right_or_refused() -> None:
    row = next(survey(["doge"]))
    refused = "refused: DogeForCausalLM makes attention masks of its own, which headprobe does not know"
    assert {row.score, row.norms, row.knockout} in ({"ok"}, {refused})
    assert row.compress.startswith("refused: DogeForCausalLM")


@pytest.mark.slow
def test_no_family_is_wrong_or_ends_in_an_internal_error() -> None:
    assert [row for row in survey() if row.is_bad] == []


def test_the_table_numbers_the_reasons_of_refusals() -> None:
    rows = [
        Row("a", "AForCausalLM", "ok", "refused: AForCausalLM: no", "ok", "ok"),
        Row("b", "BForCausalLM", "skipped: what", "refused: BForCausalLM: no", "refused: never", "wrong: rows"),
    ]
    assert table(rows, "5.24.0").splitlines()[2:] == [
        "| model type | class | score | compress | norms | knockout |",
        "|---|---|---|---|---|---|",
        "| `a` | AForCausalLM | ok | refused (1) | ok | ok |",
        "| `b` | BForCausalLM | skipped (2) | refused (1) | refused (3) | wrong: rows |",
        "",
        "1. the model: no",
        "2. what",
        "3. never",
    ]


def test_a_window_that_is_missed_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskDesk, "window", lambda desk, own, layer: None)
    row = next(survey(["qwen2_moe"]))
    assert row.score.startswith("wrong: ")
    assert row.norms.startswith("wrong: ")
    assert row.knockout.startswith("wrong: ")
    assert row.is_bad

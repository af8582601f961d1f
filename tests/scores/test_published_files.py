"""Figures of files that circulate, where HEADPROBE_PUBLISHED_SCORES names a folder that holds them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

PUBLISHED = "HEADPROBE_PUBLISHED_SCORES"
pytestmark = pytest.mark.skipif(PUBLISHED not in os.environ, reason=f"{PUBLISHED} names no folder of published files")
FILES = {
    "headkv/Meta-Llama-3-8B-Instruct_retrieval_heads.json": (
        *(107, 87, 19.8020, 1.0087, 71.1),
        "15-30 16-20 27-7 24-27 8-1 15-1 16-1 5-8 20-14 27-5",
    ),
    "headkv/Meta-Llama-3-8B-Instruct_retrieval_reasoning_heads.json": (
        *(74, 56, 22.8733, 0.3443, 0.2),
        "15-30 8-11 16-1 8-1 20-1 24-27 20-26 17-29 13-18 20-14",
    ),
    "retrieval-head/llama-2-7b-80k.json": (
        *(586, 580, 14.4242, 0.9426, 70.2),
        "16-19 11-15 8-26 6-9 7-12 17-22 11-2 6-16 19-15 21-30",
    ),
}


def folder() -> Path:
    return Path(os.environ[PUBLISHED])


@pytest.mark.parametrize("name", FILES)
def test_the_figures_are_those_that_are_known(cli, name: str) -> None:
    trials, distinct, total, largest, zero, top = FILES[name]
    record = json.loads(cli("scores", "show", folder() / name, "--json").out)
    assert (record["num_layers"], record["num_heads"]) == (32, 32)
    assert (record["num_trials"], record["num_distinct_trials"]) == (trials, distinct)
    assert record["sum_of_means"] == pytest.approx(total, abs=5e-5)
    assert record["max"] == pytest.approx(largest, abs=5e-5)
    assert round(100 * record["zero_fraction"], 1) == zero
    assert " ".join(f"{head['layer']}-{head['head']}" for head in record["top_heads"]) == top


@pytest.mark.parametrize("name", FILES)
def test_they_come_back_from_the_native_format_as_they_were(cli, tmp_path: Path, name: str) -> None:
    native, back = tmp_path / "native.json", tmp_path / "back.json"
    assert cli("scores", "convert", folder() / name, native, "--to", "headprobe").code == 0
    assert cli("scores", "convert", native, back, "--to", "headkv").code == 0
    assert json.loads(back.read_text()) == json.loads((folder() / name).read_text())


def test_the_repeated_answers_are_found(cli) -> None:
    path = folder() / "headkv" / "Meta-Llama-3-8B-Instruct_retrieval_heads.json"
    shown = cli("scores", "validate", path, "--method", "retrieval", "--json")
    found = {finding["check"]: finding["detail"] for finding in json.loads(shown.out)[0]["findings"]}
    assert shown.code == 3
    assert found["above-bound"] == "2 heads score above 1 in 10 of 107 trials, up to 1.882"
    assert found["zero-trials"] == "3 of 107 trials are zero in every head, the first is trial 89"
    assert "trials 1 to 10 are one and the same" in found["duplicate-trials"]
    assert "impossible-values" not in found


def test_the_duo_pattern_comes_back_byte_for_byte(cli, tmp_path: Path) -> None:
    source = folder() / "duo-attention" / "Meta-Llama-3.1-8B-Instruct"
    assert cli("scores", "convert", source, tmp_path / "n.json", "--to", "headprobe").code == 0
    assert cli("scores", "convert", tmp_path / "n.json", tmp_path / "duo", "--to", "duo").code == 0
    name = "full_attention_heads.tsv"
    assert (tmp_path / "duo" / name).read_bytes() == (source / name).read_bytes()


def test_the_ranking_is_one(cli) -> None:
    shown = cli("scores", "show", folder() / "qrhead" / "Llama-3.1-8B-Instruct_qr_head_LME.yaml", "--json")
    record = json.loads(shown.out)
    assert (record["is_ranking"], record["method"], record["num_trials"]) == (True, "qrhead", None)
    assert [(head["layer"], head["head"]) for head in record["top_heads"][:3]] == [(13, 18), (13, 21), (8, 11)]

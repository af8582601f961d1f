from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import ROOT

DEMO_SCORES = ROOT / "headprobe" / "models" / "bundled" / "scores" / "demo--r2.json"
OPTIONS = ("--window", 128, "--memory", 0.046875, "--length", "2000")


def test_table_compares_the_plan_with_all_heads_alike(cli) -> None:
    done = cli("serve-plan", DEMO_SCORES, *OPTIONS, "-o", "plan.json")
    assert (done.code, done.err) == (0, "")
    assert [line.rstrip() for line in done.out.splitlines()] == [
        "demo: 6 of 24 KV heads keep everything, the others the first 32 tokens and the last 128; "
        "prompts are read dense",
        "0.046875 GiB of cache, requests of 2,000 tokens, blocks of 96 and 32 tokens:",
        "",
        "                 bytes per token  MiB per request  while it is read  largest batch  tokens that fit",
        "all heads alike            6,144            11.72             11.72              4            8,000",
        "this plan                  1,991             3.80             11.81             10           20,000",
        "",
        "written to plan.json",
    ]
    # 27 blocks of 6 x 96 x 256 bytes: 21 for the full heads, 1 + 5 for the others
    assert json.loads(Path("plan.json").read_text())["full_heads"] == [[], [2], [1], [2], [1, 3], [2]]


def test_json_holds_the_plan_and_the_same_numbers(cli) -> None:
    done = cli("serve-plan", DEMO_SCORES, *OPTIONS, "--json")
    given = json.loads(done.out)
    assert given["path"] is None
    assert given["plan"]["schema"] == "headprobe-serve-plan/1"
    assert given["plan"]["scores"]["file"] == "demo--r2.json"
    assert given["kv_bytes_per_request"] == {"all": 2000 * 6144, "plan": 27 * 6 * 96 * 256}
    assert given["largest_batch"] == {"all": 4, "plan": 10}
    assert given["tokens_that_fit"] == {"all": 8000, "plan": 20000}


def test_sinks_that_fill_no_block_are_rounded_up_and_that_is_said(cli) -> None:
    assert "the first 32 tokens (4 rounded up to whole blocks)" in cli("serve-plan", DEMO_SCORES, "--sinks", 4).out


def test_duo_pattern_serves_as_well(cli) -> None:
    Path("full_attention_heads.tsv").write_text("0.1\t0.9\t0.2\t0.3\n" * 6)
    done = cli("serve-plan", "full_attention_heads.tsv", "--model", "demo", "--json")
    assert json.loads(done.out)["plan"]["full_heads"] == [[1]] * 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--full-heads", 2), "a share of 2.0 full heads is out of range, need 0 to 1"),
        (("--memory", 0), "a memory of 0.0 GiB is out of range, need more than 0"),
        (("--memory", "nan"), "--memory is nan, need a finite number"),
        (("--length", "1k,2k"), "--length takes one length, got '1k,2k'"),
        (("--window", 8), "a window of 8 tokens is too small, need at least the 32 of a block"),
    ],
)
def test_faults_are_one_line(cli, arguments: tuple[object, ...], message: str) -> None:
    done = cli("serve-plan", DEMO_SCORES, *arguments)
    assert done.code != 0
    assert done.err.startswith(f"headprobe: error: {message}")
    assert len(done.err.splitlines()) == 1


def test_existing_plan_is_not_overwritten_in_silence(cli) -> None:
    Path("plan.json").write_text("mine")
    done = cli("serve-plan", DEMO_SCORES, "-o", "plan.json")
    assert "plan.json already exists; --overwrite replaces it" in done.err
    assert Path("plan.json").read_text() == "mine"
    assert cli("serve-plan", DEMO_SCORES, "-o", "plan.json", "--overwrite").code == 0

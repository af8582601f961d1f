from __future__ import annotations

import json
from pathlib import Path

import pytest

KEYED = '{"0-0": [0.5, 0.25], "0-1": [0, 0], "0-2": [1, 0.75], "0-3": [0, 0.25]}'
OPTIONS = ("--num-kv-heads", 2, "--budget", 20, "--beta", 2, "--prompt-tokens", 22)


@pytest.fixture
def keyed(tmp_path: Path) -> Path:
    (tmp_path / "keyed.json").write_text(KEYED)
    return Path("keyed.json")


def test_the_table_the_losses_and_the_picture(cli, keyed: Path) -> None:
    done = cli("budgets", keyed, *OPTIONS)
    assert (done.code, done.err) == (0, "")
    assert [line.rstrip() for line in done.out.splitlines()] == [
        "keyed.json",
        "headkv-r2 (window 8, beta 2) | 20 entries per KV head on average | prompt of 22 tokens | "
        "18 to 22 entries per head | 40 of 44 entries (90.9 %)",
        "",
        "layer   0   1       mean",
        "    0  18  22       20.0",
        "",
        "budget lost to rounding and clamping: 0 %",
        "by the published code, on query heads: 8.75 % of 80 entries (rounding 0 %, clamping 8.75 %)",
        "",
        "picture: keyed--budgets.png",
    ]
    assert Path("keyed--budgets.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_same(cli, keyed: Path) -> None:
    done = cli("budgets", keyed, *OPTIONS, "--compat", "headkv", "-o", "b.svg", "--json")
    assert json.loads(done.out) == {
        "path": "b.svg",
        "scores": "keyed.json",
        "policy": "headkv-r2",
        "budget": 20,
        "ratio": None,
        "prompt_tokens": 22,
        "window": 8,
        "sinks": 0,
        "beta": 2.0,
        "compat": "headkv",
        "gqa": "mean",
        "layers": [0],
        "num_kv_heads": 2,
        "kv_entries": 39,
        "full_kv_entries": 44,
        "kv_bytes": None,
        "full_kv_bytes": None,
        "lost": 0.025,
        "reference": {
            "heads": "query",
            "asked_entries": 80,
            "rounded_entries": 80,
            "usable_entries": 73,
            "lost": 0.0875,
            "lost_to_rounding": 0.0,
            "lost_to_clamping": 0.0875,
        },
        "capacity": [[17, 22]],
        "notes": [],
    }
    assert Path("b.svg").read_text().startswith("<?xml")


def test_the_default_budget_is_256_entries(cli, keyed: Path) -> None:
    record = json.loads(cli("budgets", keyed, "--num-kv-heads", 2, "--json").out)
    assert (record["budget"], record["kv_entries"], record["prompt_tokens"]) == (256, 512, 8192)


def test_the_files_name_tells_kv_heads_and_bytes(cli, tmp_path: Path) -> None:
    keys = {f"{layer}-{head}": [layer * head / 448] for layer in range(28) for head in range(16)}
    Path("Qwen3-0.6B.json").write_text(json.dumps(keys))
    record = json.loads(cli("budgets", "Qwen3-0.6B.json", "--ratio", 0.125, "--json").out)
    assert record["num_kv_heads"] == 8
    assert (record["kv_entries"], record["full_kv_entries"]) == (1024 * 28 * 8, 8192 * 28 * 8)
    assert record["kv_bytes"] == 1024 * 28 * 8 * 2 * 128 * 2


def test_a_policy_without_scores_shows_no_reference(cli, keyed: Path) -> None:
    out = cli("budgets", keyed, "--num-kv-heads", 2, "--policy", "snapkv", "--budget", 16).out
    assert "snapkv (window 8) | 16 entries" in out
    assert "published" not in out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("keyed.json",), 2, "keyed.json does not say how many KV heads its model has; give --num-kv-heads"),
        (("keyed.json", "--num-kv-heads", "3"), 2, "4 query heads cannot be shared evenly by 3 KV heads"),
        (("keyed.json", *OPTIONS, "--policy", "nope"), 2, "unknown policy 'nope'"),
        (("keyed.json", *OPTIONS, "--policy", "snapkv"), 2, "the policy snapkv has no beta (given: 2.0)"),
        (("keyed.json", *OPTIONS, "-o", "b.gif"), 2, "its ending must be .png, .svg or .pdf"),
        ((), 3, "no score file in scores/"),
    ],
)
def test_errors_are_one_line_and_draw_nothing(cli, keyed: Path, arguments: tuple, code: int, message: str) -> None:
    done = cli("budgets", *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["keyed.json"]

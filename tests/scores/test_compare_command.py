from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from headprobe.scores.score_file import write_score_file


@pytest.fixture
def files(tmp_path, make_scores):
    """Two native files of 2 x 12 heads, and a table over 3 KV heads."""
    rng = np.random.default_rng(0)
    base = np.linspace(0.9, 0.1, 24).reshape(2, 12)
    for name, order in (("a", slice(None)), ("b", slice(None, None, -1))):
        tables = base[:, order] + 0.01 * rng.random((12, 2, 12))
        scores = make_scores(list(tables), [True] * 12, kv_heads=3)
        scores = replace(scores, trials=tuple(replace(trial, depth=0.0) for trial in scores.trials))
        write_score_file(tmp_path / f"{name}.json", scores)
    (tmp_path / "full_attention_heads.tsv").write_text("0.9\t0.5\t0.25\n0.1\t0.75\t0.0\n")
    return [tmp_path / name for name in ("a.json", "b.json", "full_attention_heads.tsv")]


def test_json_holds_every_pair(cli, files):
    done = cli("scores", "compare", *files, "--json", "--moved", 2)
    assert done.code == 0
    record = json.loads(done.out)
    assert [(file["name"], file["heads"], file["num_trials"]) for file in record["files"]] == [
        ("A", "query", 12), ("B", "query", 12), ("C", "kv", None),
    ]  # fmt: skip
    assert [(p["first"], p["second"], p["heads"], p["num_heads"]) for p in record["pairs"]] == [
        ("A", "B", "query", 24), ("A", "C", "kv", 6), ("B", "C", "kv", 6),
    ]  # fmt: skip
    pair = record["pairs"][0]
    # each layer is turned round: the sum of squared rank differences is 2 * 572, and 1 - 6 * 1144 / (24 * 575) follows
    assert pair["spearman"] == pytest.approx(1 - 6 * 1144 / (24 * 575))
    assert pair["spearman_interval"][0] < pair["spearman"] < pair["spearman_interval"][1]
    assert [(o["k"], o["shared"]) for o in pair["top_k_overlap"]] == [(10, 8.0), (20, 16.0)]
    assert len(pair["moved"]) == 2
    assert record["picture"] is None


def test_the_table_is_for_reading(cli, files):
    out = cli("scores", "compare", *files[:2]).out
    assert "agreement over 24 query heads:" in out
    assert "heads that moved most from A to B:" in out
    assert out.isascii()


def test_how_query_heads_become_kv_heads_is_named(cli, files):
    assert "a.json: 12 query heads as 3 KV heads, each the mean of its" in cli("scores", "compare", *files[::2]).out
    by_best = cli("scores", "compare", *files[::2], "--gqa", "max").out
    assert "a.json: 12 query heads as 3 KV heads, each its best query head" in by_best


def test_a_picture_is_drawn_on_request(cli, files, tmp_path):
    done = cli("scores", "compare", *files, "-o", tmp_path / "new" / "agreement.png")
    assert done.code == 0
    assert (tmp_path / "new" / "agreement.png").read_bytes().startswith(b"\x89PNG")
    assert done.out.endswith(f"picture: {tmp_path / 'new' / 'agreement.png'}\n")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--moved", "-1"], "--moved is -1, need at least 0"),
        (["--gqa", "sum"], "joined by 'mean' or 'max', not 'sum'"),
        (["-o", "x.gif"], "cannot draw x.gif: its ending must be .png, .svg or .pdf"),
    ],
)
def test_bad_options_end_with_2_and_one_line(cli, files, options, told):
    done = cli("scores", "compare", *files[:2], *options)
    assert (done.code, done.out) == (2, "")
    assert told in done.err
    assert done.err.count("\n") == 1


def test_one_file_cannot_be_compared(cli, files):
    assert "1 score file given, need 2 to 26" in cli("scores", "compare", files[0]).err


def test_terminal_commands_in_names_are_written_out(cli, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.yaml").write_bytes(
            b'attn_head_set: "0-1,1-0"\nmodel_name_or_path: "\x1b[31m' + name.encode() + b'"\n'
        )
    out = cli("scores", "compare", tmp_path / "a.yaml", tmp_path / "b.yaml").out
    assert "\x1b" not in out

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

KEYED = '{"0-0": [0.5, 0.25], "0-1": [0, 0], "0-2": [1, 0.75], "0-3": [0, 0.25]}'


@pytest.fixture
def keyed(tmp_path: Path) -> Path:
    (tmp_path / "toy").mkdir()
    path = tmp_path / "toy" / "keyed.json"
    path.write_text(KEYED)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    config = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    return tmp_path / "model"


def test_show_prints_facts_top_heads_and_layers(cli, keyed: Path) -> None:
    shown = cli("scores", "show", keyed, "--top", 2)
    assert (shown.code, shown.err) == (0, "")
    assert [line.rstrip() for line in shown.out.replace(str(keyed), "FILE").splitlines()] == [
        "file              FILE",
        "format            headkv",
        "model             not stated",
        "method            not stated",
        "heads             1 layers x 4 query heads",
        "trials            2 (2 distinct)",
        "sum of means      1.3750",
        "largest mean      0.8750 (of at most 1)",
        "zero heads        25.0%",
        "half of the mass  in 1 of 4 heads",
        "",
        "top heads (layer-head):",
        "",
        "rank  head   score     95 % interval  share",
        "   1   0-2  0.8750  0.7500 to 1.0000  63.6%",
        "   2   0-0  0.3750  0.2500 to 0.5000  27.3%",
        "",
        "mean score of each layer:",
        "",
        "layer    mean",
        "    0  0.3438  ########################################",
    ]


def test_show_as_json_holds_the_same(cli, keyed: Path) -> None:
    record = json.loads(cli("scores", "show", keyed, "--json", "--top", 1).out)
    assert record["format"] == "headkv"
    assert (record["num_layers"], record["num_heads"]) == (1, 4)
    assert (record["num_trials"], record["num_distinct_trials"]) == (2, 2)
    assert (record["sum_of_means"], record["max"], record["zero_fraction"]) == (1.375, 0.875, 0.25)
    head = {"layer": 0, "head": 2, "score": 0.875, "low": 0.75, "high": 1.0, "share": 0.875 / 1.375}
    assert record["top_heads"] == [head]
    assert record["provenance"] is None


def test_show_takes_the_model_from_the_files_name(cli, tmp_path: Path) -> None:
    path = tmp_path / "Qwen3-0.6B.json"
    path.write_text(KEYED)
    record = json.loads(cli("scores", "show", path, "--json").out)
    assert record["stated_model"] == {"name": "Qwen/Qwen3-0.6B", "source": "the file's name"}
    assert record["num_key_value_heads"] == 8


def test_show_says_that_a_ranking_is_one(cli, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("attn_head_set: 1-1,0-0")
    out = cli("scores", "show", tmp_path / "r.yaml").out
    assert "qrhead, a ranking without scores" in out
    assert "2 layers x 2 query heads at least" in out
    assert "sum of means" not in out


def test_names_of_strangers_cannot_steer_the_terminal(cli, tmp_path: Path) -> None:
    value = {"meta": {"model": "\ud800\x1b[31mred\x07"}, "scores": {"0-0": [1]}}
    (tmp_path / "l.json").write_text(json.dumps(value))
    assert "\\ud800\\x1b[31mred\\x07" in cli("scores", "show", tmp_path / "l.json").out
    record = json.loads(cli("scores", "show", tmp_path / "l.json", "--json").out)
    assert record["model"] == "\ud800\x1b[31mred\x07"


def test_validate_ends_with_3_on_errors_and_prints_all_files(cli, keyed: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"0-0": [1.5], "0-1": [0]}')
    shown = cli("scores", "validate", keyed, tmp_path / "bad.json", tmp_path / "none.json")
    assert shown.code == 3
    lines = shown.out.splitlines()
    assert f"{keyed} (headkv): no errors, 1 warning" in lines
    assert f"{tmp_path / 'bad.json'} (headkv): 1 error, 1 warning" in lines
    assert f"{tmp_path / 'none.json'} (unknown format): 1 error, no warnings" in lines
    assert "1 head scores above 1 in 1 of 1 trials, up to 1.5" in shown.out
    assert "(repeated answers or a wrong divisor; such heads are ranked too high)" in shown.out


def test_validate_ends_with_0_without_errors(cli, keyed: Path) -> None:
    assert cli("scores", "validate", keyed).code == 0


def test_validate_as_json_is_a_list_in_the_order_of_the_files(cli, keyed: Path) -> None:
    shown = cli("scores", "validate", "nowhere", keyed, "--json")
    records = json.loads(shown.out)
    assert shown.code == 3
    assert [record["path"] for record in records] == ["nowhere", str(keyed)]
    assert records[0]["findings"] == [
        {
            "check": "unreadable",
            "severity": "error",
            "detail": "No such file or directory",
            "why": "no program can know which scores were meant",
        }
    ]
    assert {finding["check"] for finding in records[1]["findings"]} == {"too-few-trials", "no-provenance"}


def test_validate_holds_the_shape_against_the_model(cli, keyed: Path, model: Path) -> None:
    assert cli("scores", "validate", keyed, "--model", model).code == 0
    shown = cli("scores", "validate", keyed, "--model", "llama3-8b", "--json")
    detail = {f["check"]: f["detail"] for f in json.loads(shown.out)[0]["findings"]}["wrong-shape"]
    assert (shown.code, detail) == (3, "1 x 4 query heads, llama3-8b (stated by --model) has 32 x 32")


def test_validate_takes_a_method_from_outside(cli, keyed: Path, tmp_path: Path) -> None:
    (tmp_path / "odd.json").write_text('{"0-0": [0.123456], "0-1": [0.777771], "0-2": [0.31], "0-3": [0]}')
    shown = cli("scores", "validate", tmp_path / "odd.json", "--method", "retrieval")
    assert shown.code == 3
    assert "impossible-values" in shown.out
    assert cli("scores", "validate", keyed, "--method", "retrieval").code == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--method", "guess"], "--method is 'guess', need one of r2, retrieval, enhanced, value, contrast"),
        (["--model", "guess"], "--model 'guess' is neither in the catalog"),
    ],
)
def test_validate_refuses_options_that_mean_nothing(cli, keyed: Path, options: list, told: str) -> None:
    shown = cli("scores", "validate", keyed, *options)
    assert shown.code == 2
    assert told in shown.err


def test_validate_refuses_files_above_the_limit(cli, keyed: Path) -> None:
    shown = cli("scores", "validate", keyed, "--max-bytes", 10)
    assert shown.code == 3
    assert "larger than the limit of 10 bytes" in shown.out


def test_convert_writes_and_tells_what_is_lost(cli, keyed: Path, model: Path, tmp_path: Path) -> None:
    native = cli("scores", "convert", keyed, tmp_path / "native.json", "--to", "headprobe", "--model", model)
    assert (native.code, native.out) == (0, f"written to {tmp_path / 'native.json'}\n")
    assert "placeholders are used" in native.err
    back = cli("scores", "convert", tmp_path / "native.json", tmp_path / "back.json", "--to", "headkv", "--json")
    assert json.loads((tmp_path / "back.json").read_text()) == json.loads(KEYED)
    assert json.loads(back.out)["paths"] == [str(tmp_path / "back.json")]
    assert json.loads(back.out)["notes"][0].startswith("lost: model, method")


def test_convert_to_duo_makes_a_folder_that_is_read_again(cli, keyed: Path, model: Path, tmp_path: Path) -> None:
    options = ("--to", "duo", "--model", model, "--gqa", "max", "--sink-size", 16)
    assert cli("scores", "convert", keyed, tmp_path / "duo", *options).code == 0
    assert json.loads((tmp_path / "duo" / "config.json").read_text())["sink_size"] == 16
    assert json.loads(cli("scores", "show", tmp_path / "duo", "--json").out)["max"] == 0.875


def test_convert_to_a_tsv_puts_the_config_beside_it(cli, keyed: Path, model: Path, tmp_path: Path) -> None:
    cli("scores", "convert", keyed, tmp_path / "d" / "heads.tsv", "--to", "duo", "--model", model)
    assert sorted(path.name for path in (tmp_path / "d").iterdir()) == ["config.json", "heads.tsv"]


def test_convert_takes_kv_heads_and_width_for_an_unknown_model(cli, keyed: Path, tmp_path: Path) -> None:
    out = tmp_path / "native.json"
    options = ("--to", "headprobe", "--num-kv-heads", 2, "--head-dim", 64)
    assert cli("scores", "convert", keyed, out, *options).code == 0
    assert json.loads(out.read_text())["model"]["num_key_value_heads"] == 2


def test_convert_names_a_width_that_it_had_to_make_up(cli, keyed: Path, tmp_path: Path) -> None:
    out = tmp_path / "native.json"
    shown = cli("scores", "convert", keyed, out, "--to", "headprobe", "--num-kv-heads", 2)
    assert shown.code == 0
    assert "not in the source: the width of a head; 1 is used" in shown.err
    assert "head_dim" in json.loads(out.read_text())["probes"]["placeholders"]


@pytest.mark.parametrize(
    ("options", "code", "told"),
    [
        (["--to", "duo"], 2, "does not state which query heads share a KV head"),
        (["--to", "wav", "--model", "demo"], 2, "--to is 'wav'"),
        (["--to", "duo", "--gqa", "sum"], 2, "--gqa is 'sum', need mean or max"),
        (["--to", "duo", "--sink-size", "-1"], 2, "a window of -1 tokens, need at least 0"),
        (["--to", "duo", "--num-kv-heads", "3", "--head-dim", "8"], 2, "need a divisor of the 4 query heads"),
        (["--to", "duo", "--num-kv-heads", "2", "--head-dim", "0"], 2, "--head-dim is 0, need at least 1"),
        (["--to", "duo", "--model", "demo", "--num-kv-heads", "3"], 2, "is 3, demo (stated by --model) has 4"),
    ],
)  # fmt: skip
def test_convert_refuses_in_one_line(cli, keyed: Path, tmp_path: Path, options: list, code: int, told: str) -> None:
    shown = cli("scores", "convert", keyed, tmp_path / "out", *options)
    assert (shown.code, shown.out) == (code, "")
    assert told in shown.err
    assert shown.err.count("\n") == 1


def test_convert_never_overwrites_unasked_not_even_one_of_two_files(
    cli, keyed: Path, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "duo").mkdir()
    (tmp_path / "duo" / "config.json").write_text("mine")
    shown = cli("scores", "convert", keyed, tmp_path / "duo", "--to", "duo", "--model", model)
    assert shown.code == 10
    assert [path.name for path in (tmp_path / "duo").iterdir()] == ["config.json"]
    assert cli("scores", "convert", keyed, tmp_path / "duo", "--to", "duo", "--model", model, "--overwrite").code == 0


def test_merge_says_of_a_file_that_is_not_there_what_the_other_commands_say(cli, keyed: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone.json"
    for files in ([keyed, gone], [gone, keyed], [gone, tmp_path / "gone.journal"]):
        merged = cli("scores", "merge", *files, "-o", tmp_path / "joint.json")
        assert (merged.code, merged.out) == (3, "")
        assert "gone.json: No such file or directory" in merged.err
    assert cli("scores", "show", gone).code == 3


def test_merge_reads_a_folder_as_head_scores_and_never_waits_for_a_pipe(cli, keyed, model, tmp_path: Path) -> None:
    assert cli("scores", "convert", keyed, tmp_path / "duo", "--to", "duo", "--model", model).code == 0
    merged = cli("scores", "merge", keyed, tmp_path / "duo", "-o", tmp_path / "joint.json")
    assert merged.code == 2
    assert "keyed.json" in merged.err  # a foreign file: of both the first
    os.mkfifo(tmp_path / "pipe.json")
    merged = cli("scores", "merge", tmp_path / "pipe.json", keyed, "-o", tmp_path / "joint.json")
    assert merged.code == 3
    assert "pipe.json: is not a regular file" in merged.err


def test_the_app_alone_prints_its_help(cli) -> None:
    shown = cli("scores")
    assert shown.code == 0
    assert "validate" in shown.out


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_attention_heads": "x"}, "num_attention_heads in config.json is 'x', need a whole number"),
        ({"num_key_value_heads": [2, 4]}, "num_key_value_heads differs from layer to layer (2, 4)"),
        ({"global_head_dim": 512}, "head_dim (global_head_dim) differs from layer to layer (8, 512)"),
        ({"layer_types": 3}, "layer_types in config.json is 3, need a list of names"),
        ({"text_config": {"num_hidden_layers": 1}}, "config.json has no num_hidden_layers and num_attention_heads"),
    ],
)
def test_a_models_folder_whose_config_cannot_be_read_is_an_error_of_one_line(
    cli, keyed: Path, tmp_path: Path, config: dict, words: str
) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    sizes = {"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 8}
    (folder / "config.json").write_text(json.dumps({**sizes, **config}))
    result = cli("scores", "show", keyed, "--model", folder)
    assert (result.code, result.out) == (4, "")
    assert f"error: {folder}: {words}" in result.err

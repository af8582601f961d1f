from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tests.tiny_models import build_tiny_model

TEXT = "Anna is 41 years old. Tom is 17 years old."


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("gemma3", tmp_path_factory.mktemp("models"))


@pytest.fixture
def prompt(tmp_path: Path) -> Path:
    (tmp_path / "prompt.txt").write_text(TEXT)
    return Path("prompt.txt")


def test_the_table_has_a_line_a_layer_and_the_picture_is_written(cli, model: Path, prompt: Path) -> None:
    done = cli("norms", "--model", model, "--prompt", prompt, "-o", "n.png", "--sinks", 2)
    assert (done.code, done.err) == (0, "")
    lines = [line.rstrip() for line in done.out.splitlines()]
    assert lines[0].startswith(f"{model} | prompt.txt | ")
    assert "sinks: '<s>', " in lines[0]
    assert [line.split("  ")[0] for line in lines[2:5]] == ["layer", "0 (window 16)", "1"]
    assert lines[-1] == "picture: n.png"
    assert Path("n.png").read_bytes().startswith(b"\x89PNG")


def test_json_holds_the_table_and_the_tokens_of_the_drawn_heads(cli, model: Path, prompt: Path) -> None:
    done = cli(
        "norms", "--model", model, "--prompt", prompt, "--layers", "1,0", "--heads", "1", "-o", "n.svg", "--json"
    )
    record = json.loads(done.out)
    assert (record["path"], record["prompt"], record["sinks"]) == ("n.svg", "prompt.txt", 4)
    assert record["sink_tokens"][0] == "<s>"
    assert len(record["sink_tokens"]) == 4
    assert [(head["layer"], head["kv_head"]) for head in record["heads"]] == [(1, 1), (0, 1)]
    assert [(layer["layer"], layer["window"]) for layer in record["layers"]] == [(0, 16), (1, None)]
    head, layer = record["heads"][0], record["layers"][1]
    assert len(head["attention"]) == len(head["norms"]) == record["prompt_tokens"]
    assert sum(head["attention"]) == pytest.approx(1.0, abs=1e-5)
    assert layer["ratio"] == pytest.approx(layer["sink_norm"] / layer["median_norm"])
    assert len(layer["position_ratios"]) == 4


def test_the_prompt_comes_from_stdin(cli, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(TEXT))
    record = json.loads(cli("norms", "--model", model, "--prompt", "-", "-o", "n.png", "--json").out)
    assert record["prompt"] == "stdin"


def test_without_a_prompt_a_needle_is_read(cli, model: Path) -> None:
    record = json.loads(cli("norms", "--model", model, "--length", "384", "-o", "n.png", "--json").out)
    assert record["prompt"].startswith("needle ")
    assert record["prompt"].endswith("@384@50")
    assert 300 < record["prompt_tokens"] < 384
    assert [head["layer"] for head in record["heads"]] == [1]  # the one layer that sees the whole prompt


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--layers", "2"), 2, "layer '2' does not exist, the model has layers 0 to 1"),
        (("--heads", "0,-1"), 2, "KV head '-1' does not exist, the model has KV heads 0 to 1"),
        (("--sinks", "900"), 2, "need more than its 900 sinks"),
        (("--length", "512"), 2, "--length 512 is for the needle prompt: leave it out with --prompt"),
        (("-o", "n.gif"), 2, "its ending must be .png, .svg or .pdf"),
        (("--prompt", "long.txt"), 5, "the model's window only 1024"),
        (("--prompt", "empty.txt"), 3, "empty.txt: the prompt is empty"),
        (("--prompt", "bytes.txt"), 3, "bytes.txt: byte 1 is not UTF-8: a prompt is plain text"),
        (("--prompt", "gone.txt"), 11, "gone.txt: No such file or directory"),
    ],
)
def test_errors_are_one_line_and_draw_nothing(
    cli, model: Path, prompt: Path, arguments: tuple, code: int, message: str
) -> None:
    Path("long.txt").write_text("Tom is old. " * 1000)
    Path("empty.txt").write_text(" \n")
    Path("bytes.txt").write_bytes(b"a\xff")
    there = sorted(Path().iterdir())
    done = cli("norms", "--model", model, "--prompt", prompt, *arguments)
    assert (done.code, done.out) == (code, "")
    assert message in done.err
    assert len(done.err.splitlines()) == 1
    assert sorted(Path().iterdir()) == there

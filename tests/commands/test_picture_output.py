"""Pictures, as any other file, replace nothing unasked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import CliResult
from tests.tiny_models import build_tiny_model

RunCli = Callable[..., CliResult]
DEFAULTS = [
    (["heatmap", "h.json"], "h.png"),
    (["heatmap", "h.json", "--kind", "layers"], "h--layers.png"),
    (["heatmap", "h.json", "--against", "k.json"], "h--against.png"),
    (["budgets", "h.json", "--num-kv-heads", "2"], "h--budgets.png"),
]
NAMED = [
    (["heatmap", "h.json", "-o", "p.svg"], "p.svg"),
    (["budgets", "h.json", "--num-kv-heads", "2", "-o", "p.pdf"], "p.pdf"),
    (["scores", "compare", "h.json", "k.json", "-o", "p.png"], "p.png"),
    (["report", "h.json", "-o", "p.html"], "p.html"),
]


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    for name, best in (("h", 3), ("k", 5)):
        table = {f"{layer}-{head}": [float(best == 4 * layer + head), 0.1] for layer in range(2) for head in range(4)}
        (tmp_path / f"{name}.json").write_text(json.dumps(table))


@pytest.mark.parametrize(("arguments", "picture"), DEFAULTS + NAMED)
def test_a_file_that_is_there_is_replaced_with_overwrite_only(
    cli: RunCli, tmp_path: Path, arguments: list[str], picture: str
) -> None:
    (tmp_path / picture).write_text("mine")
    done = cli(*arguments)
    told = f"headprobe: error: {picture} already exists; --overwrite replaces it\n"
    assert done == CliResult(10, "", told)
    assert (tmp_path / picture).read_text() == "mine"
    assert cli(*arguments, "--overwrite").code == 0
    drawn = (tmp_path / picture).read_bytes()
    assert drawn != b"mine"
    assert cli(*arguments) == CliResult(10, "", told)
    assert (tmp_path / picture).read_bytes() == drawn


@pytest.mark.parametrize(("arguments", "picture"), NAMED)
def test_a_picture_is_not_drawn_over_what_it_shows(
    cli: RunCli, tmp_path: Path, arguments: list[str], picture: str
) -> None:
    (tmp_path / picture).write_bytes((tmp_path / "h.json").read_bytes())
    (tmp_path / "h.json").unlink()
    (tmp_path / "h.json").symlink_to(picture)
    done = cli(*arguments, "--overwrite")
    assert (done.code, done.out) == (2, "")
    assert "are the same file: the input would be lost" in done.err
    assert json.loads((tmp_path / picture).read_text())["0-3"] == [1.0, 0.1]


def test_norms_asks_before_the_model_is_loaded(cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "norms--nowhere.png").write_text("mine")
    done = cli("norms", "--model", "nowhere")
    assert (done.code, done.err) == (
        10, "headprobe: error: norms--nowhere.png already exists; --overwrite replaces it\n",
    )  # fmt: skip
    model = build_tiny_model("llama", tmp_path)
    (tmp_path / "p.txt").write_text("Anna is 41 years old. Tom is 17 years old.")
    given = ("norms", "--model", model, "--prompt", "p.txt", "-o", "norms--nowhere.png")
    assert cli(*given).code == 10
    assert (tmp_path / "norms--nowhere.png").read_text() == "mine"
    assert cli(*given, "--overwrite").code == 0
    assert (tmp_path / "norms--nowhere.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("command", ["convert", "merge"])
def test_scores_are_not_written_over_their_source(cli: RunCli, tmp_path: Path, command: str) -> None:
    before = (tmp_path / "h.json").read_bytes()
    if command == "convert":
        done = cli("scores", "convert", "h.json", "x/../H.json", "--to", "headkv", "--overwrite")
    else:
        done = cli("scores", "merge", "h.json", "k.json", "-o", "./h.json", "--overwrite")
    assert (done.code, done.out) == (2, "")
    assert "are the same file: the input would be lost" in done.err
    assert (tmp_path / "h.json").read_bytes() == before

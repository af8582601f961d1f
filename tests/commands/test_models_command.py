from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from headprobe.models import catalog
from headprobe.models.catalog import CATALOG
from tests.conftest import CliResult

RunCli = Callable[..., CliResult]


def install_bundled(monkeypatch: pytest.MonkeyPatch, planted: str | None) -> Path:
    """A stand-in for the bundled model's folder."""
    folder = Path("bundled").resolve()
    folder.mkdir()
    (folder / "config.json").write_text("{}", encoding="utf-8")
    if planted is not None:
        (folder / "planted_heads.json").write_text(planted, encoding="utf-8")
    monkeypatch.setattr(catalog, "bundled_model_folder", lambda: folder)
    monkeypatch.setattr("headprobe.commands.models.bundled_model_folder", lambda: folder)
    return folder


def demo_record(cli: RunCli) -> dict[str, object]:
    (record,) = [r for r in json.loads(cli("models", "--json").out) if r["name"] == "demo"]
    return record


def test_json_has_an_object_for_every_alias(cli: RunCli) -> None:
    result = cli("models", "--json")
    records = json.loads(result.out)
    assert (result.code, result.err) == (0, "")
    assert [record["name"] for record in records] == [entry.alias for entry in CATALOG]
    assert {key: value for key, value in records[1].items() if key != "path"} == {
        "name": "llama3-8b",
        "id": "meta-llama/Meta-Llama-3-8B-Instruct",
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "window": 8192,
        "licence": "Llama 3",
        "note": "licence to accept",
    }


def test_demo_tells_its_folder_and_its_copying_heads(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    folder = install_bundled(monkeypatch, '{"copying": [[2, 1], [4, 6]], "all": []}')
    record = demo_record(cli)
    assert record["path"] == str(folder)
    assert record["planted_heads"] == [[2, 1], [4, 6]]


def test_demo_without_planted_heads_says_null(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    install_bundled(monkeypatch, None)
    assert demo_record(cli)["planted_heads"] is None


def test_a_broken_planted_heads_file_is_an_error(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    install_bundled(monkeypatch, "{}")
    result = cli("models")
    assert result.code == 3
    assert "planted_heads.json: expected" in result.err


def test_a_model_in_the_cache_shows_its_folder(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr(
        "headprobe.commands.models.cached_folder",
        lambda repo_id: Path("/cache") if repo_id == "Qwen/Qwen3-8B" else None,
    )
    paths = {record["name"]: record["path"] for record in json.loads(cli("models", "--json").out)}
    assert paths["qwen3-8b"] == "/cache"
    assert paths["qwen3-4b"] is None


def test_the_table_has_a_line_for_every_alias(monkeypatch: pytest.MonkeyPatch, cli: RunCli) -> None:
    monkeypatch.setattr("headprobe.commands.models.local_path", lambda entry: None)
    lines = cli("models").out.splitlines()
    assert lines[0].split() == "name id layers x heads / KV window licence on this machine note".split()
    assert lines[1].split() == "demo bundled 6 x 8 / 4 2,048 Apache-2.0 missing bundled, with planted heads".split()
    assert len(lines) == len(CATALOG) + 1
    assert "not downloaded" in lines[2]

from __future__ import annotations

import json
from pathlib import Path

import pytest

from headprobe.errors import FileFormatError, ModelError
from headprobe.models.catalog import (
    CATALOG,
    PlantedHead,
    ResolvedModel,
    aliases,
    bundled_model_folder,
    find_alias,
    planted_heads,
    resolve,
)


def write_planted(text: str) -> Path:
    Path("planted_heads.json").write_text(text, encoding="utf-8")
    return Path.cwd()


def test_aliases_are_distinct_and_lower_case() -> None:
    assert len(set(aliases())) == len(CATALOG)
    assert all(alias == alias.lower() for alias in aliases())


@pytest.mark.parametrize("entry", CATALOG, ids=lambda entry: entry.alias)
def test_query_heads_of_an_entry_are_shared_evenly(entry) -> None:
    assert entry.num_attention_heads % entry.num_key_value_heads == 0
    assert entry.window >= 2048


def test_an_alias_stands_for_a_hub_id() -> None:
    source = "meta-llama/Meta-Llama-3-8B-Instruct"
    assert resolve("llama3-8b") == ResolvedModel("llama3-8b", source, is_local=False)


def test_upper_and_lower_case_of_an_alias_are_one() -> None:
    assert resolve("Llama3-8B").source == "meta-llama/Meta-Llama-3-8B-Instruct"
    assert find_alias("no-such-model") is None


def test_demo_stands_for_the_bundled_folder() -> None:
    assert resolve("demo") == ResolvedModel("demo", str(bundled_model_folder()), is_local=True)


def test_a_folder_that_exists_is_taken_as_it_is() -> None:
    Path("my-model").mkdir()
    assert resolve("my-model") == ResolvedModel("my-model", "my-model", is_local=True)
    assert resolve("./my-model").is_local


def test_an_alias_wins_over_a_folder_of_the_same_name() -> None:
    Path("demo").mkdir()
    assert resolve("demo").source == str(bundled_model_folder())
    assert resolve("./demo").source == "demo"


def test_a_tilde_means_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("home/model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(Path("home").resolve()))
    assert resolve("~/model").source == str(Path("home/model").resolve())


@pytest.mark.parametrize("name", ["gpt2", "Qwen/Qwen3-8B"])
def test_any_other_name_is_a_hub_id(name: str) -> None:
    assert resolve(name) == ResolvedModel(name, name, is_local=False)


@pytest.mark.parametrize("name", ["./model", "../model", "/no/model", "~/no-model", "a/b/c", "model/", "", " "])
def test_a_path_that_does_not_exist_is_no_hub_id(name: str) -> None:
    with pytest.raises(ModelError, match="no such alias and no such folder; point at a local folder"):
        resolve(name)


def test_a_file_is_no_model() -> None:
    Path("model.safetensors").touch()
    with pytest.raises(ModelError, match=r"'model.safetensors' is a file; give the folder that holds its config.json"):
        resolve("model.safetensors")


def test_planted_heads_are_read() -> None:
    kinds = [{"layer": 0, "head": 1, "kind": "previous"}, {"layer": 2, "head": 3, "kind": "copying"}]
    heads = planted_heads(write_planted(json.dumps({"copying": [[2, 3], [4, 0]], "all": kinds})))
    assert heads.copying == ((2, 3), (4, 0))
    assert heads.all == (PlantedHead(0, 1, "previous"), PlantedHead(2, 3, "copying"))


def test_missing_planted_heads_say_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no planted_heads.json .*python -m training"):
        planted_heads(tmp_path)


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"copying": [[1]], "all": []}', '{"copying": [], "all": [{"layer": 1}]}']
)
def test_planted_heads_of_another_shape_are_refused(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"planted_heads.json: expected .*copying"):
        planted_heads(write_planted(text))


def test_planted_heads_that_are_no_json_are_refused() -> None:
    with pytest.raises(FileFormatError, match=r"planted_heads.json: not JSON"):
        planted_heads(write_planted("{"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"copying": [[1e400, 0]], "all": []}', '{"copying": [], "all": [3]}'])
def test_planted_heads_that_cannot_be_read_are_a_file_error(text: str) -> None:
    with pytest.raises(FileFormatError, match=r"planted_heads.json: ") as caught:
        planted_heads(write_planted(text))
    assert len(str(caught.value)) < 400

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headprobe.compression.policies import POLICIES, make_policy
from headprobe.errors import OptionError
from headprobe.evaluation.variants import PolicyOptions, Variant, policy_names, variants
from headprobe.geometry import ModelGeometry
from headprobe.models.loading import load_model
from headprobe.scores.any_scores import read_any
from headprobe.scores.provenance import ModelIdentity
from headprobe.scores.score_file import write_score_file
from tests.compression.scores import random_scores
from tests.tiny_models import build_tiny_model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


def score_file(
    folder: Path, geometry: ModelGeometry, method: str = "r2", config: str | None = None, weights: str | None = None
) -> Path:
    """Random scores; those with a model's `config` hash, and its `weights` hash or none, belong to it."""
    scores = random_scores(geometry)
    owner = replace(scores.provenance, model=ModelIdentity("random", config_sha256=config, weights_sha256=weights))
    named = replace(scores, method=replace(scores.method, name=method), provenance=owner)
    return write_score_file(folder / f"{method}.json", named)


def test_full_always_comes_first_and_names_once() -> None:
    assert policy_names("snapkv, h2o,full") == ("full", "snapkv", "h2o")
    assert policy_names("all") == tuple(POLICIES)
    with pytest.raises(OptionError, match="unknown policy 'wobble'"):
        policy_names("wobble")


def test_options_reach_the_policies_that_have_them() -> None:
    full, streaming, headkv = PolicyOptions(window=4, beta=2.0).apply(["full", "streaming-llm", "headkv-r2"])
    assert (full, streaming) == (make_policy("full"), make_policy("streaming-llm"))
    assert headkv == make_policy("headkv-r2", window=4, beta=2.0)


def test_an_option_that_no_policy_has_is_refused() -> None:
    with pytest.raises(OptionError, match=r"none of full, h2o has a beta \(given: 2.0\)"):
        PolicyOptions(beta=2.0).apply(["full", "h2o"])


def test_policies_with_scores_get_their_baselines(tmp_path: Path, llama: Any) -> None:
    file = score_file(tmp_path, llama.geometry)
    found = variants(llama, [make_policy("full"), make_policy("headkv-r2")], [file])
    assert [variant.name for variant in found] == ["full", "headkv-r2", "headkv-r2 (random)", "headkv-r2 (shuffled)"]


def test_of_several_files_each_policy_takes_its_method(tmp_path: Path, llama: Any) -> None:
    files = [score_file(tmp_path, llama.geometry, method) for method in ("retrieval", "r2")]
    found = variants(llama, [make_policy("headkv-r2"), make_policy("headkv-r")], files, baselines=())
    assert [variant.scores.method for variant in found if variant.scores] == ["r2", "retrieval"]


def test_scores_of_another_method_are_not_passed_off_as_the_policys_own(tmp_path: Path, llama: Any) -> None:
    score_file(tmp_path, llama.geometry, config=llama.config_sha256)
    with pytest.raises(OptionError, match="headkv-er needs enhanced scores of .*--method enhanced` makes them"):
        list(variants(llama, [make_policy("headkv-er")], folder=tmp_path))


def test_scores_of_older_weights_are_not_taken_for_the_models(tmp_path: Path, llama: Any) -> None:
    score_file(tmp_path, llama.geometry, "r2", llama.config_sha256, weights="0" * 64)
    with pytest.raises(OptionError, match="no head scores of .*, which headkv-r2 needs"):
        list(variants(llama, [make_policy("headkv-r2")], folder=tmp_path))
    score_file(tmp_path, llama.geometry, "enhanced", llama.config_sha256, weights=llama.weights_sha256)
    [found] = variants(llama, [make_policy("headkv-er")], folder=tmp_path, baselines=())
    assert found.scores is not None
    assert found.remark is None


def test_for_a_pattern_that_is_not_there_retrieval_scores_stand_in(tmp_path: Path, llama: Any) -> None:
    for method in ("retrieval", "r2"):
        score_file(tmp_path, llama.geometry, method, llama.config_sha256)
    [found] = variants(llama, [make_policy("duo")], folder=tmp_path, baselines=())
    assert found.scores is not None
    assert found.scores.method == "retrieval"
    assert found.remark == "duo runs on retrieval scores: there is no duo file"


def variant(folder: Path, geometry: ModelGeometry, source: str) -> Variant:
    scores = read_any(score_file(folder, geometry))
    table = np.arange(geometry.num_hidden_layers * geometry.num_key_value_heads, dtype=np.float64)
    shape = (geometry.num_hidden_layers, geometry.num_key_value_heads)
    settled = replace(scores, mean=table.reshape(shape), heads="kv", native=None, trial_scores=None)
    return Variant(make_policy("headkv-r2"), source, settled)


GEOMETRY = ModelGeometry(3, 8, 4, 8, ("full_attention", "sliding_attention", "full_attention"))


def test_shuffling_moves_the_real_scores_between_compressed_layers(tmp_path: Path) -> None:
    shuffled = variant(tmp_path, GEOMETRY, "shuffled").scores_for("p", 0, GEOMETRY)
    assert shuffled is not None
    assert shuffled.heads == "kv"
    assert sorted(shuffled.mean[[0, 2]].ravel()) == [0, 1, 2, 3, 8, 9, 10, 11]
    assert shuffled.mean[1].tolist() == [4, 5, 6, 7]
    assert shuffled.mean[0].tolist() != [0, 1, 2, 3]


def test_random_scores_lie_between_0_and_1(tmp_path: Path) -> None:
    drawn = variant(tmp_path, GEOMETRY, "random").scores_for("p", 0, GEOMETRY)
    assert drawn is not None
    assert drawn.mean[[0, 2]].min() >= 0.0
    assert drawn.mean[[0, 2]].max() < 1.0
    assert len(np.unique(drawn.mean[[0, 2]])) == 8


def test_draws_differ_between_prompts_and_seeds_and_come_again(tmp_path: Path) -> None:
    one = variant(tmp_path, GEOMETRY, "random")
    tables = [one.scores_for(trial, seed, GEOMETRY) for trial, seed in (("p", 0), ("p", 0), ("q", 0), ("p", 1))]
    means = [table.mean.tolist() for table in tables if table is not None]
    assert means[0] == means[1]
    assert means[0] != means[2]
    assert means[0] != means[3]


def test_real_scores_stay_as_they_are(tmp_path: Path) -> None:
    real = variant(tmp_path, GEOMETRY, "real")
    assert real.scores_for("p", 0, GEOMETRY) is real.scores
    assert Variant(make_policy("snapkv")).scores_for("p", 0, GEOMETRY) is None

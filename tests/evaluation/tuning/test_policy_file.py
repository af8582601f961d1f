"""Policy files: written, read back, refused where something in them is wrong."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

import headprobe
from headprobe.compression.policies import POLICIES, make_policy
from headprobe.errors import FileFormatError, OptionError, OutputExistsError
from headprobe.evaluation.tuning.policy_file import ModelNamed, PolicyFile, ScoresNamed, options_of, read_policy_file
from headprobe.models.catalog import bundled_model_folder
from headprobe.models.loading import LoadedModel, load_model

SHIPPED = bundled_model_folder() / "scores" / "demo--r2.json"
SHA256 = sha256(SHIPPED.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo", device="cpu")


def made(**changes: Any) -> PolicyFile:
    given = {
        "policy": make_policy("headkv-r2", window=2, pool=49, beta=1.1),
        "model": ModelNamed("demo", "a" * 64, "b" * 64),
        "budget": 48,
        "scores": ScoresNamed("demo--r2.json", SHA256),
    }
    return PolicyFile(**{**given, **changes})


def changed(path: Path, **changes: Any) -> Path:
    record = made().record()
    for key, value in changes.items():
        *blocks, last = key.split("__")
        block = record
        for name in blocks:
            block = block[name]
        block[last] = value
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "full"] + ["window+pyramid"])
def test_every_policy_comes_back_as_it_was_written(name: str, tmp_path: Path) -> None:
    policy = make_policy(name)
    scores = ScoresNamed("demo--r2.json", SHA256) if policy.needs_scores else None
    written = made(policy=policy, scores=scores, gqa="max").write(tmp_path / "policy.json")
    assert read_policy_file(tmp_path / "policy.json") == written
    assert written.path == tmp_path / "policy.json"


def test_switches_and_a_ratio_come_back(tmp_path: Path) -> None:
    policy = make_policy("snapkv", sinks=4, value_aware=True, window=3)
    assert options_of(policy) == {"window": 3, "pool": 7, "sinks": 4, "value_aware": True}
    made(policy=policy, scores=None, budget=None, ratio=0.25).write(tmp_path / "policy.json")
    found = read_policy_file(tmp_path / "policy.json")
    assert (found.policy, found.budget, found.ratio) == (policy, None, 0.25)


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    made().write(tmp_path / "policy.json")
    with pytest.raises(OutputExistsError):
        made().write(tmp_path / "policy.json")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"schema": "headprobe-policy/9"}, "schema is 'headprobe-policy/9', need 'headprobe-policy/1'"),
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"policy": "full"}, "has no option"),
        ({"options__depth": 3}, "the policy headkv-r2 has no option 'depth'"),
        ({"options__name": "x"}, "the policy headkv-r2 has no option 'name'"),
        ({"options__window": "8"}, "options.window is '8', need a whole number"),
        ({"options__window": True}, "options.window is True, need a whole number"),
        ({"options__pool": 4}, "pool is 4, need an odd number"),
        ({"options__beta": 0.5}, "beta is 0.5, need more than 1"),
        ({"options__compat": 3}, "options.compat is 3, need a text"),
        ({"budget": 0}, "budget is 0, need at least 1"),
        ({"budget": 1.5}, "budget is 1.5, need a whole number"),
        ({"ratio": 0.5}, "needs a budget or a ratio, one of the two"),
        ({"gqa": "sum"}, "joined by 'mean' or 'max', not 'sum'"),
        ({"scores": None}, "the policy headkv-r2 needs head scores"),
        ({"scores__file": "../r2.json"}, "need the name of a file without a folder"),
        ({"scores__file": "C:r2.json"}, "need the name of a file without a folder"),
        ({"scores__file": ".."}, "need the name of a file without a folder"),
        ({"scores__sha256": "12"}, "scores.sha256 is '12', need 64 digits"),
        ({"model__weights_sha256": 3}, "model.weights_sha256 is 3, need a text"),
        ({"model": None}, "model is null, need an object"),
        ({"found": 3}, "found is 3, need an object"),
        ({"extra": 1}, "unknown field 'extra'"),
        ({"model__extra": 1}, "unknown field 'model.extra'"),
    ],
)
def test_a_wrong_field_is_named(changes: dict[str, Any], reason: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "policy.json", **changes)
    with pytest.raises(FileFormatError) as error:
        read_policy_file(path)
    assert reason in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


@pytest.mark.parametrize("text", ["", "[]", "{", "3", '{"schema": "headprobe-policy/1"}'])
def test_what_is_no_policy_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "policy.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"policy\.json"):
        read_policy_file(tmp_path / "policy.json")


def test_scores_are_found_beside_the_file_in_scores_and_with_the_bundled_model(tmp_path: Path) -> None:
    file = made().write(tmp_path / "tuned" / "policy.json")
    assert file.scores_path() == SHIPPED
    (tmp_path / "scores").mkdir()
    shutil.copy(SHIPPED, tmp_path / "scores" / "demo--r2.json")
    assert file.scores_path() == Path("scores/demo--r2.json")
    shutil.copy(SHIPPED, tmp_path / "tuned" / "demo--r2.json")
    assert file.scores_path() == tmp_path / "tuned" / "demo--r2.json"
    shutil.copy(SHIPPED, tmp_path / "other.json")
    assert file.scores_path(tmp_path / "other.json") == tmp_path / "other.json"


def test_scores_with_other_bytes_are_refused_and_missing_ones_named(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text("{}")
    file = made(scores=ScoresNamed("mine.json", "c" * 64)).write(tmp_path / "policy.json")
    with pytest.raises(
        OptionError, match=r"mine\.json has changed: .*policy\.json names scores with sha256 cccccccccccc"
    ):
        file.scores_path()
    (tmp_path / "mine.json").unlink()
    with pytest.raises(OptionError, match=r"names the head scores 'mine.json': neither beside it nor in scores/"):
        file.scores_path()
    with pytest.raises(OptionError, match="there.json is not there"):
        file.scores_path(Path("there.json"))


def test_another_model_is_remarked_on(demo: LoadedModel) -> None:
    assert made(model=ModelNamed.of(demo)).remark(demo) is None
    other = made(model=ModelNamed("demo", demo.config_sha256, "b" * 64)).remark(demo)
    assert other == "the policy file was chosen for other weights, not for this demo: what it keeps here is not known"
    assert "was chosen for mine, not" in str(made(model=ModelNamed("mine", "a" * 64, "b" * 64)).remark(demo))


def test_compress_takes_it_from_python(demo: LoadedModel, tmp_path: Path) -> None:
    made().write(tmp_path / "policy.json")
    chosen = headprobe.load_policy(tmp_path / "policy.json")
    with headprobe.compress(demo, **chosen.arguments()) as session:
        assert session.plan.policy == made().policy
        assert session.plan.budget == 48
        assert session.plan.head_scores is not None

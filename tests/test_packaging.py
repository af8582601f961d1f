from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from importlib import import_module, metadata
from pathlib import Path

import pytest
import typer

import headprobe
from headprobe.cli import app
from tests.commands.test_option_values import commands
from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    builder = pytest.importorskip("hatchling.builders.wheel").WheelBuilder(str(ROOT))
    (path,) = builder.build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])
    return zipfile.ZipFile(path)


def files_of(folder: str, *, but: tuple[str, ...] = ("__pycache__",)) -> set[str]:
    return {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and not set(but) & set(path.parts)
    }


def test_the_console_script_leads_to_a_function() -> None:
    module, function = PROJECT["project"]["scripts"]["headprobe"].split(":")
    assert callable(getattr(import_module(module), function))


def test_the_wheel_carries_every_module_and_the_type_marker(wheel: zipfile.ZipFile) -> None:
    assert files_of("headprobe") <= set(wheel.namelist())
    assert "headprobe/py.typed" in wheel.namelist()


@pytest.mark.parametrize("data", ["needles", "haystacks"])
def test_the_wheel_carries_the_data(wheel: zipfile.ZipFile, data: str) -> None:
    inside = {name for name in wheel.namelist() if name.startswith(f"headprobe/_data/{data}/")}
    assert inside == {f"headprobe/_data/{name}" for name in files_of(data)}
    assert inside


def test_the_wheel_carries_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert tops == {"headprobe", f"headprobe-{headprobe.__version__}.dist-info"}
    assert not [name for name in wheel.namelist() if "__pycache__" in name]


def test_the_wheel_says_version_licence_and_dependencies(wheel: zipfile.ZipFile) -> None:
    folder = f"headprobe-{headprobe.__version__}.dist-info"
    about = message_from_string(wheel.read(f"{folder}/METADATA").decode())
    assert about["Version"] == headprobe.__version__
    assert about["License-Expression"] == "Apache-2.0"
    needed = {line.split(";")[0].strip() for line in about.get_all("Requires-Dist", []) if "extra ==" not in line}
    assert {"torch>=2.11", "transformers<6,>=5.17"} <= needed
    assert f"{folder}/licenses/LICENSE" in wheel.namelist()


def pins_of(file: str) -> dict[str, str]:
    """Exact versions in a constraints file, by normalized name."""
    lines = (ROOT / "constraints" / file).read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and line[:1] != "#"]
    assert all(separator for _, separator, _ in pins), f"{file} has a line that is no exact version"
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, _, version in pins}


def test_the_lock_pins_all_that_the_project_asks_for_within_its_ranges() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    project, pins = PROJECT["project"], pins_of("lock.txt")
    for wanted in map(requirements.Requirement, project["dependencies"] + project["optional-dependencies"]["dev"]):
        assert wanted.specifier.contains(pins[wanted.name]), f"{wanted} is locked at {pins[wanted.name]}"


def test_the_lock_pins_what_those_packages_ask_for_in_turn() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pins = pins_of("lock.txt")
    open_ends = {"setuptools", "pip"}  # part of the environment itself
    seen = []
    for name, version in pins.items():
        try:
            if metadata.version(name) != version and name != "torch":  # torch adds the build
                continue  # not the environment of the lock
        except metadata.PackageNotFoundError:
            continue  # for another platform
        seen.append(name)
        for need in map(requirements.Requirement, metadata.requires(name) or []):
            needed = need.marker is None or need.marker.evaluate({"extra": ""})
            if needed and not re.match("nvidia|cuda", need.name):  # torch's own, with CUDA only
                assert re.sub(r"[-_.]+", "-", need.name).lower() in pins.keys() | open_ends, f"{name} needs {need}"
    assert "torch" in seen


def test_the_lock_takes_torch_as_it_was_chosen_by_hand() -> None:
    assert pins_of("torch.txt").items() <= pins_of("lock.txt").items()


def test_doctor_knows_the_releases_that_were_tested() -> None:
    made = subprocess.run([sys.executable, ROOT / ".ci/tested"], capture_output=True, text=True, check=True).stdout
    assert (ROOT / "headprobe/tested.json").read_text(encoding="utf-8") == made, "run: make lock"


def test_the_lowest_releases_are_those_of_the_ranges() -> None:
    made = subprocess.run([sys.executable, ROOT / ".ci/floors"], capture_output=True, text=True, check=True).stdout
    assert "transformers==5.17\n" in made
    assert "torch" not in [line.partition("==")[0] for line in made.splitlines()]


def test_the_changelog_and_the_citation_name_this_version() -> None:
    assert f"## {headprobe.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\nversion: {headprobe.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


@pytest.mark.parametrize("arxiv", ["2410.19258", "2404.15574", "2406.12335"])
def test_the_citation_names_the_papers(arxiv: str) -> None:
    assert f"arXiv:{arxiv}" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_ci_script_can_be_run() -> None:
    for script in (ROOT / ".ci" / "run", ROOT / ".ci" / "try-wheel"):
        assert script.stat().st_mode & 0o111
        assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_the_bundled_model_is_what_the_catalog_says() -> None:
    from headprobe.models.catalog import find_alias, is_bundled
    from headprobe.models.loading import geometry_of

    if not is_bundled():
        pytest.skip("the bundled model has not been trained yet")
    entry, geometry = find_alias("demo"), geometry_of("demo")
    assert entry is not None
    assert (entry.num_hidden_layers, entry.num_attention_heads) == geometry.shape
    assert (entry.num_key_value_heads, entry.head_dim) == (geometry.num_key_value_heads, geometry.head_dim)


def test_the_bundled_model_is_small_enough_to_ship() -> None:
    folder = Path(headprobe.__file__).parent / "models" / "bundled"
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 12_000_000


NEEDS_MORE = {"scores push", "scores pull", "eval harness"}  # the hub, an extra


def test_every_command_is_tried_on_the_newest_releases() -> None:
    lines = (ROOT / ".ci" / "smoke").read_text(encoding="utf-8").splitlines()
    tried = [line.removeprefix("hp ") for line in lines if line.startswith("hp ")]
    named = {path.removeprefix("headprobe ") for path, _ in commands(typer.main.get_command(app), "headprobe")}
    missing = {name for name in named if not any(call.startswith(name.replace("TASK", "ruler")) for call in tried)}
    assert missing == NEEDS_MORE

from __future__ import annotations

import tomllib
import zipfile
from email import message_from_string
from importlib import import_module
from pathlib import Path

import pytest

import headprobe
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


def test_the_constraint_allows_what_the_project_asks_for() -> None:
    requirements = pytest.importorskip("packaging.requirements")
    pins = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    project = PROJECT["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    asked = {r.name: r for r in map(requirements.Requirement, wanted)}
    for pin in map(requirements.Requirement, pins):
        assert asked[pin.name].specifier.contains(str(pin.specifier).removeprefix("=="))


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

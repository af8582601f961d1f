from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "headprobe"
FLOORS = {
    "errors": 0, "registry": 1, "geometry": 1, "spans": 1, "attention": 2, "probes": 2, "scores": 2, "models": 2,
    "profiling": 3,
    "compression": 4, "evaluation": 5, "pictures": 6, "commands": 7, "cli": 8, "__main__": 9,
}  # fmt: skip
STRANGERS = {"attention", "probes", "scores", "models"}
HEAVY = {"torch", "transformers", "matplotlib", "numpy", "scipy", "tokenizers", "huggingface_hub", "safetensors"}


def imported_modules(source: str) -> list[str]:
    """Every module that `source` imports, wherever in the file: for `from a import b` it is `a.b`."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def room(module: str) -> str | None:
    """The room of the house that a module of ours belongs to; None for `headprobe` itself and all others."""
    parts = module.split(".")
    is_ours = parts[0] == "headprobe" and len(parts) > 1 and not parts[1].startswith("__version")
    return parts[1] if is_ours else None


def faults(module: str, source: str) -> Iterator[str]:
    """What is wrong with the imports of our `module`, a line each."""
    here = room(module)
    for target in imported_modules(source):
        there = room(target)
        if here is None or there is None or here == there:
            continue
        if there not in FLOORS:
            yield f"{module} imports {target}, which is in no room"
        elif FLOORS[there] > FLOORS[here]:
            yield f"{module} imports {target}, which lies higher"
        elif {here, there} <= STRANGERS:
            yield f"{module} imports {target}, though {here} and {there} are strangers"


def our_modules() -> dict[str, str]:
    files = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")
    names = (".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files)
    return dict(zip(names, (path.read_text(encoding="utf-8") for path in files), strict=True))


def test_every_module_stands_in_a_room_of_the_house() -> None:
    assert {room(module) for module in our_modules()} <= set(FLOORS)


def test_imports_point_down_only() -> None:
    assert [fault for module, source in our_modules().items() for fault in faults(module, source)] == []


@pytest.mark.parametrize(
    ("module", "source", "fault"),
    [
        ("headprobe.probes.plan", "import headprobe.cli", "imports headprobe.cli, which lies higher"),
        ("headprobe.probes.plan", "from headprobe import profiling", "imports headprobe.profiling, which lies higher"),
        ("headprobe.scores.table", "def f():\n  from headprobe.models import hub", "scores and models are strangers"),
        ("headprobe.cli", "from headprobe.attic import box", "imports headprobe.attic.box, which is in no room"),
    ],
)
def test_an_arrow_that_runs_up_is_found(module: str, source: str, fault: str) -> None:
    assert fault in " ".join(faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headprobe.cli", "from headprobe import __version__"),
        ("headprobe.profiling.run", "from headprobe.models.loading import load_model"),
    ],
)
def test_an_arrow_that_runs_down_is_fine(module: str, source: str) -> None:
    assert list(faults(module, source)) == []


def test_only_pictures_import_matplotlib() -> None:
    users = {module for module, source in our_modules().items() if "matplotlib" in _outside(source)}
    assert {room(module) for module in users} <= {"pictures"}


def test_probes_and_scores_do_without_torch() -> None:
    users = {module for module, source in our_modules().items() if _outside(source) & {"torch", "transformers"}}
    rooms = {module for module in users if room(module) in {"probes", "scores"}}
    assert rooms == {"headprobe.scores.formats.kvzip"}  # whose files are torch's own


def _outside(source: str) -> set[str]:
    return {module.split(".")[0] for module in imported_modules(source)} - {"headprobe"}


def loaded_modules(code: str) -> set[str]:
    """The top-level modules that are loaded after `code` ran in a fresh interpreter."""
    tail = "\nimport json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code + tail], env=environment, capture_output=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "command",
    [
        *("", "score", "compress", "heatmap", "models", "needles", "haystacks", "doctor"),
        *("scores", "scores show", "scores validate", "scores convert"),
        *("budgets", "norms", "serve-plan"),
        *("eval", "eval needles"),
    ],
)
def test_help_loads_nothing_heavy(command: str) -> None:
    arguments = [*command.split(), "--help"]
    assert loaded_modules(f"from headprobe.cli import main; main({arguments!r})") & HEAVY == set()


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_modules("import headprobe; headprobe.HeadprobeError, headprobe.ModelGeometry") & HEAVY == set()


def test_every_public_name_is_there() -> None:
    import headprobe

    assert [name for name in headprobe.__all__ if getattr(headprobe, name, None) is None] == []
    assert set(headprobe.__all__) <= set(dir(headprobe))


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    import headprobe

    with pytest.raises(AttributeError, match="module 'headprobe' has no attribute 'wobble'"):
        _ = headprobe.wobble

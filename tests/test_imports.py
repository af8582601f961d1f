from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import pytest

import headprobe
from tests.conftest import ROOT

PACKAGE = ROOT / "headprobe"
FLOORS = {
    "_version": 0, "errors": 0, "home": 0, "events": 0, "stages": 0, "registry": 1, "geometry": 1, "spans": 1,
    "attention": 2, "probes": 2, "scores": 2, "models": 2,
    "profiling": 3,
    "compression": 4, "evaluation": 5, "pictures": 6, "commands": 7, "cli": 8, "__main__": 9, "__init__": 9,
}  # fmt: skip
STRANGERS = {"attention", "probes", "scores", "models"}
HEAVY = {"torch", "transformers", "matplotlib", "numpy", "scipy", "tokenizers", "huggingface_hub", "safetensors"}


@cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """All that `source` consists of."""
    return tuple(ast.walk(ast.parse(source)))


def imported_modules(source: str) -> list[str]:
    """Every module that `source` imports, wherever in the file: for `from a import b` it is `a.b`."""
    found: list[str] = []
    for node in nodes_of(source):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            found += [f"{node.module}.{name.name}" for name in node.names]
    return found


def room(module: str) -> str | None:
    """The room of the house that a module of ours belongs to, `__init__` for the public face; None for all others."""
    parts = module.split(".")
    if parts[0] != "headprobe":
        return None
    name = parts[1] if len(parts) > 1 else "__init__"
    return "__init__" if name == "__version__" or name in headprobe.__all__ else name


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


@cache
def our_modules() -> dict[str, str]:
    files = sorted(PACKAGE.rglob("*.py"))
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
        ("headprobe.commands.doctor", "import headprobe", "imports headprobe, which lies higher"),
        ("headprobe.home", "from headprobe import __version__", "headprobe.__version__, which lies higher"),
        ("headprobe.profiling.run", "from headprobe import load_model", "headprobe.load_model, which lies higher"),
        ("headprobe.cli", "from headprobe.attic import box", "imports headprobe.attic.box, which is in no room"),
    ],
)
def test_an_arrow_that_runs_up_is_found(module: str, source: str, fault: str) -> None:
    assert fault in " ".join(faults(module, source))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("headprobe.cli", "from headprobe._version import __version__"),
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


@pytest.mark.parametrize("group", ["", "scores", "eval"])
def test_a_list_of_commands_loads_nothing_heavy(group: str) -> None:
    arguments = [*group.split(), "--help"]
    assert loaded_modules(f"from headprobe.cli import main; main({arguments!r})") & HEAVY == set()


@pytest.mark.parametrize(
    ("commands", "allowed"),
    [
        (("needles", "haystacks"), set()),
        (("models",), {"huggingface_hub"}),
        (("heatmap", "report", "scores show", "scores validate", "scores convert"), {"numpy"}),
        (("scores compare", "scores stability", "scores merge"), {"numpy"}),
        (("scores push", "scores pull"), {"numpy", "huggingface_hub"}),
        (
            (
                "score",
                "compress",
                "budgets",
                "norms",
                "knockout",
                "serve-plan",
                "doctor",
                "bench",
                "tune",
                "eval needles",
                "eval ruler",
            ),
            HEAVY - {"matplotlib"},
        ),
    ],
)
def test_help_of_a_command_loads_what_the_command_needs(commands: tuple[str, ...], allowed: set[str]) -> None:
    calls = "; ".join(f"main({[*command.split(), '--help']!r})" for command in commands)
    assert loaded_modules(f"from headprobe.cli import main; {calls}") & HEAVY <= allowed


NOT_DRAWING = (
    "models", "needles", "haystacks", "doctor --json", "scores show {r2}", "scores validate {r2}",
    "scores compare {r2} {enhanced}", "scores convert {r2} headkv.json --to headkv", "report {r2} -o page.html",
    "score --lengths 256 --depths 2 -o a.json", "score --lengths 256 --depths 2 --seed 1 -o b.json",
    "scores merge a.json b.json -o both.json", "scores stability both.json --resamples 50",
    "serve-plan {r2} -o plan.json", "compress --length 256 --max-new-tokens 2",
    "eval needles --lengths 256 --budgets 32 --dry-run", "eval tasks", "eval ruler:vt --limit 1 --dry-run",
)  # fmt: skip


def test_no_command_loads_matplotlib_unless_it_draws() -> None:
    bundled = PACKAGE / "models" / "bundled" / "scores"
    files = {"r2": bundled / "demo--r2.json", "enhanced": bundled / "demo--enhanced.json"}
    commands = [[word.format(**files) for word in line.split()] for line in NOT_DRAWING]
    loop = f"for given in {commands!r}: print(main(given), 'matplotlib' in sys.modules, file=sys.stderr)"
    code = f"import sys\nfrom headprobe.cli import main\n{loop}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    endings = [line for line in done.stderr.splitlines() if line.endswith(("True", "False"))]
    assert endings == ["0 False"] * len(NOT_DRAWING), done.stderr


def late_imports(source: str) -> list[str]:
    """The lines inside functions that import something."""
    functions = [node for node in nodes_of(source) if isinstance(node, ast.FunctionDef)]
    found = {node.lineno for f in functions for node in ast.walk(f) if isinstance(node, ast.Import | ast.ImportFrom)}
    return [source.splitlines()[number - 1].strip() for number in sorted(found)]


def test_few_imports_stand_inside_functions_and_each_says_why() -> None:
    late = [line for source in our_modules().values() for line in late_imports(source)]
    assert len(late) <= 15
    assert [line for line in late if "  # " not in line] == []


def test_importing_the_package_loads_nothing_heavy() -> None:
    assert loaded_modules("import headprobe; headprobe.HeadprobeError, headprobe.ModelGeometry") & HEAVY == set()


def test_every_public_name_is_there() -> None:
    assert [name for name in headprobe.__all__ if getattr(headprobe, name, None) is None] == []
    assert set(headprobe.__all__) <= set(dir(headprobe))


def test_all_that_tests_import_of_ours_is_there() -> None:
    """Names that tests import inside functions, or from modules that need an extra, are there too."""
    missing = []
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and room(str(node.module)) is not None:
                module = import_module(str(node.module))
                found = [name.name for name in node.names if not _is_there(module, name.name)]
                missing += [f"{path.name}: {node.module}.{name}" for name in found]
    assert missing == []


def _is_there(module: ModuleType, name: str) -> bool:
    return hasattr(module, name) or find_spec(f"{module.__name__}.{name}") is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'headprobe' has no attribute 'wobble'"):
        _ = headprobe.wobble

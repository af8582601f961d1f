"""The report's JavaScript: how its modules are joined; their syntax and unit tests, in node where there is one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from headprobe.pictures.report.report import EXPORT, IMPORT, SCRIPTS, asset, bundle, script_text
from tests.conftest import ROOT
from tests.pictures.report.budget_cases import budget_cases, wanted_budgets

ASSETS = ROOT / "headprobe/pictures/report/assets"
UNIT_TESTS = sorted((ROOT / "tests/pictures/report/js").glob("*.test.js"))
OLDEST_NODE = 20

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def node() -> str:
    """The node on the path, where it is new enough for its own test runner."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("needs node on the path")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    if int(version.removeprefix("v").split(".")[0]) < OLDEST_NODE:
        pytest.skip(f"needs node {OLDEST_NODE} or newer, found {version}")
    return found


@pytest.fixture
def run_node(node: str) -> Run:
    """Run node in the repository, with arguments and what it reads."""

    def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [node, *arguments]
        return subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)

    return run


def imports_of(text: str) -> Iterator[tuple[str, str]]:
    """Each name that a module imports, and the module that it comes from."""
    for names, module in IMPORT.findall(text):
        yield from ((name.strip(), module) for name in names.strip("{}").split(","))


def test_every_module_is_part_of_the_page() -> None:
    assert sorted(path.stem for path in ASSETS.glob("*.js")) == sorted(SCRIPTS)


def test_imports_and_exports_are_written_as_the_page_joins_them() -> None:
    for name in SCRIPTS:
        rest = EXPORT.sub("", IMPORT.sub("", asset(f"{name}.js")))
        assert re.findall(r"^\s*(?:import|export)\b.*|\bimport\(.*|\brequire\(.*", rest, re.MULTILINE) == [], name


def test_a_module_imports_what_modules_before_it_export() -> None:
    exported: dict[str, list[str]] = {}
    for module in SCRIPTS:
        text = asset(f"{module}.js")
        for name, source in imports_of(text):
            assert name in exported.get(source, []), f"{module}.js imports {name} from {source}.js"
        exported[module] = EXPORT.findall(text)


def test_nothing_is_exported_for_nobody() -> None:
    texts = [asset(f"{name}.js") for name in SCRIPTS]
    used = {name for name, _ in chain.from_iterable(imports_of(text) for text in texts)}
    for path in UNIT_TESTS[0].parent.glob("*.js"):
        for names in re.findall(r"^import \{([^}]*)\}", path.read_text(encoding="utf-8"), re.MULTILINE):
            used |= {name.strip() for name in names.split(",")}
    assert [name for text in texts for name in EXPORT.findall(text) if name not in used] == []


def test_the_linters_packages_are_pinned_as_they_are_asked_for() -> None:
    """`npm ci` refuses what differs; that must not look as if the linter could not be had."""
    wanted = json.loads((ROOT / "package.json").read_text(encoding="utf-8"))
    locked = json.loads((ROOT / "package-lock.json").read_text(encoding="utf-8"))["packages"]
    assert locked[""]["devDependencies"] == wanted["devDependencies"]
    assert locked[""]["engines"] == wanted["engines"]
    for name, version in wanted["devDependencies"].items():
        assert locked[f"node_modules/{name}"]["version"] == version
    assert all(part["integrity"].startswith("sha512-") for name, part in locked.items() if name)


def test_a_joined_module_sees_only_what_it_imports(run_node: Run) -> None:
    modules = {
        "one": "const hidden = 1;\nexport const shown = 2;\n",
        "two": 'import { shown } from "./one.js";\nconst hidden = shown;\nexport const twice = () => 2 * hidden;\n',
        "three": 'import { twice } from "./two.js";\nconsole.log(twice(), typeof hidden, typeof shown);\n',
    }
    done = run_node("-", text=bundle(modules))
    assert (done.stdout, done.stderr) == ("4 undefined undefined\n", "")


def test_the_joined_script_is_valid(run_node: Run) -> None:
    done = run_node("--check", "-", text=script_text())
    assert (done.returncode, done.stderr) == (0, "")


def test_every_import_is_found(run_node: Run) -> None:
    """All modules but the one that starts the page load without a page."""
    loads = "\n".join(f'import "./headprobe/pictures/report/assets/{name}.js";' for name in SCRIPTS if name != "main")
    done = run_node("--input-type=module", "-", text=loads)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("path", UNIT_TESTS, ids=lambda path: path.name.removesuffix(".test.js"))
def test_unit_tests_in_javascript_pass(run_node: Run, path: Path) -> None:
    done = run_node("--test", "--test-reporter=tap", str(path))
    counts = dict(re.findall(r"^# (tests|pass|fail|cancelled|skipped|todo) (\d+)$", done.stdout, re.MULTILINE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(counts["pass"]) == int(counts["tests"]) >= 5, done.stdout


def test_a_unit_test_that_fails_is_seen(run_node: Run, tmp_path: Path) -> None:
    (tmp_path / "wrong.test.js").write_text(
        'const test = require("node:test");\ntest("wrong", () => { throw new Error("no"); });\n', encoding="utf-8"
    )
    done = run_node("--test", "--test-reporter=tap", f"{tmp_path}/wrong.test.js")
    assert (done.returncode, "# fail 1" in done.stdout) == (1, True)


def test_the_modules_budgets_are_those_of_python(run_node: Run) -> None:
    cases = list(budget_cases())
    program = """
        import { readFileSync } from "node:fs";
        import { headScoreBudgets } from "./headprobe/pictures/report/assets/allocation.js";
        const cases = JSON.parse(readFileSync(0, "utf8"));
        console.log(JSON.stringify(cases.map((values) => headScoreBudgets(...values))));
    """
    told = json.dumps([[scores.ravel().tolist(), *rest] for scores, *rest in cases])
    done = run_node("--input-type=module", "--eval", program, text=told)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == wanted_budgets(cases)

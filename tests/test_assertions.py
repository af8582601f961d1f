"""The tests themselves: each says what it expects, no stand-in takes whatever it is given, and chance is the same."""

from __future__ import annotations

import ast
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.conftest import ROOT

FOLDERS = ("tests", "serving/tests")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
EXPECTS = {"raises", "warns", "fail"}  # of pytest
Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda


def own_nodes(function: ast.AST) -> Iterator[ast.AST]:
    """What runs when `function` does: all nodes but those of functions that are defined in it."""
    for child in ast.iter_child_nodes(function):
        yield child
        if not isinstance(child, Function | ast.ClassDef):
            yield from own_nodes(child)


def called(node: ast.AST) -> str | None:
    """The name of what a call calls, without what it belongs to."""
    if not isinstance(node, ast.Call):
        return None
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)


def expects(function: ast.AST) -> bool:
    """Whether a function itself says what it expects: an assertion that can fail, or an error or warning to come."""
    for node in own_nodes(function):
        if isinstance(node, ast.Assert) and not isinstance(node.test, ast.Constant | ast.Tuple):
            return True
        name = called(node)
        if name in EXPECTS or str(name).startswith("assert_"):
            return True
    return False


def functions_of(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def helpers(trees: dict[Path, ast.Module]) -> dict[Path, set[str]]:
    """For each file the functions, its own or imported from other tests, that expect something; through others too."""
    functions = {path: functions_of(tree) for path, tree in trees.items()}
    found = {path: {f.name for f in those if expects(f)} for path, those in functions.items()}
    calls = {path: [(f.name, set(map(called, own_nodes(f)))) for f in those] for path, those in functions.items()}
    imports = {path: list(imported_from_tests(tree)) for path, tree in trees.items()}
    before = -1
    while before != (before := sum(map(len, found.values()))):
        for path in trees:
            for source, names in imports[path]:
                found[path] |= names & found.get(source, set())
            found[path] |= {name for name, inner in calls[path] if not inner.isdisjoint(found[path])}
    return found


def imported_from_tests(tree: ast.AST) -> Iterator[tuple[Path, set[str]]]:
    """The files of other tests, and the names that are taken from each."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("tests"):
            yield ROOT.joinpath(*node.module.split(".")).with_suffix(".py"), {name.name for name in node.names}


def without_expectation(trees: dict[Path, ast.Module]) -> list[str]:
    expecting = helpers(trees)
    return [
        f"{path.name}: {function.name}"
        for path, tree in trees.items()
        for function in functions_of(tree)
        if function.name.startswith("test_") and function.name not in expecting[path]
    ]


def careless_stand_ins(tree: ast.AST) -> list[int]:
    """Lines of functions that take any arguments and look at none, unless all they do is to raise, or nothing."""
    lines = []
    for function in ast.walk(tree):
        if not isinstance(function, Function) or getattr(function, "name", "") == "__exit__":
            continue
        body = function.body if isinstance(function.body, list) else [function.body]
        told = {node.id for part in body for node in ast.walk(part) if isinstance(node, ast.Name)}
        taken = {taken.arg for taken in (function.args.vararg, function.args.kwarg) if taken}
        ends = isinstance(body[-1], ast.Raise) or (isinstance(body[-1], ast.Expr) and len(body) == 1)
        if taken - told and not (ends and not isinstance(function, ast.Lambda)):
            lines.append(function.lineno)
    return lines


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def test_every_test_says_what_it_expects(trees: dict[Path, ast.Module]) -> None:
    assert sum(function.name.startswith("test_") for tree in trees.values() for function in functions_of(tree)) > 1000
    assert without_expectation(trees) == []


def test_no_stand_in_takes_whatever_it_is_given(trees: dict[Path, ast.Module]) -> None:
    assert {path.name: lines for path, tree in trees.items() if (lines := careless_stand_ins(tree))} == {}


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("draw(1)", True),
        ("assert True", True),
        ("assert (draw(1), 'message')", True),
        ("def inner():\n        assert draw(1)\n    inner", True),
        ("helper(1)", True),
        ("assert draw(1)", False),
        ("with pytest.raises(ValueError):\n        draw(1)", False),
        ("torch.testing.assert_close(draw(1), 1)", False),
        ("check(1)", False),
        ("checks_too(1)", False),
    ],
)
@pytest.mark.filterwarnings("ignore:assertion is always true:SyntaxWarning")
def test_a_test_without_expectation_is_found(body: str, found: bool) -> None:
    text = (
        f"def test_it():\n    {body}\n"
        "def helper(x):\n    return x\ndef check(x):\n    assert x\ndef checks_too(x):\n    check(x)\n"
    )
    assert without_expectation({Path("a.py"): ast.parse(text)}) == (["a.py: test_it"] if found else [])


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("lambda *_: None", True),
        ("lambda *a, **k: run(*a)", True),
        ("def f(x, **unused):\n    return x", True),
        ("lambda *a, **k: run(*a, **k)", False),
        ("def f(*_, **__):\n    raise ValueError", False),
        ("def f(*args):\n    '''Nothing.'''", False),
        ("lambda model, cache: None", False),
    ],
)
def test_a_careless_stand_in_is_found(text: str, found: bool) -> None:
    assert careless_stand_ins(ast.parse(text)) == ([1] if found else [])


def test_every_test_begins_with_the_same_chance() -> None:
    assert random.random() == random.Random(0).random()
    assert np.random.random() == np.random.RandomState(0).random()
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(0)))


def test_examples_are_drawn_alike_in_every_run() -> None:
    assert settings.default is not None
    assert settings.default.derandomize

"""`headprobe needles` and `headprobe haystacks`, each as an app of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from headprobe.commands.haystacks import haystacks_command
from headprobe.commands.needles import needles_command
from headprobe.errors import FileFormatError, OptionError
from headprobe.probes.haystack import load_haystack
from headprobe.probes.needle import load_needles


def run(command: Any, *arguments: str) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_needles_lists_the_shipped_sets_with_numbers_and_hash() -> None:
    lines = run(needles_command).splitlines()
    assert lines[0].split() == ["name", "needles", "distractors", "kinds", "relations", "sha256"]
    assert [line.split()[0] for line in lines[1:]] == ["retrieval", "reasoning", "nonliteral"]
    reasoning = load_needles("reasoning")
    assert f"reasoning {len(reasoning)}" in lines[2]
    assert "age 12" in lines[2]
    assert lines[2].split()[-1] == reasoning.sha256[:12]


def test_needles_as_json_counts_kinds_and_relations() -> None:
    records = json.loads(run(needles_command, "reasoning", "--json"))
    assert [r["name"] for r in records] == ["reasoning"]
    assert records[0]["num_needles"] == records[0]["num_distractors"] == records[0]["kinds"]["reasoning"] == 36
    assert sum(records[0]["relations"].values()) == 36
    assert records[0]["sha256"] == load_needles("reasoning").sha256


def test_needles_shows_the_first_of_a_set() -> None:
    first = load_needles("reasoning").needles[0]
    lines = [line.split(": ", 1) for line in run(needles_command, "--show", "reasoning").splitlines()]
    shown = [(name.rstrip(":"), value.strip()) for name, value in lines]
    assert shown[0] == ("id", first.id)
    assert [value for name, value in shown if name == "fact"] == list(first.facts)
    assert shown[-3:] == [
        ("question", first.question), ("answer", first.answer), ("distractor", str(first.distractor)),
    ]  # fmt: skip


def test_needles_shows_one_by_its_id_as_json_that_can_be_loaded(tmp_path: Path) -> None:
    record = json.loads(run(needles_command, "--show", "retrieval-03", "--json"))
    file = tmp_path / "one.jsonl"
    file.write_text(json.dumps(record), encoding="utf-8")
    assert load_needles(file).needles == (load_needles("retrieval").needles[2],)


def test_needles_checks_an_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(run_shipped("retrieval").read_text(encoding="utf-8"), encoding="utf-8")
    assert run(needles_command, str(file)).splitlines()[1].split()[0] == "mine"
    assert "retrieval-02" in run(needles_command, str(file), "--show", "retrieval-02")
    assert "retrieval-01" in run(needles_command, "--show", str(file))
    file.write_text("{}\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"mine\.jsonl:1: facts must be a list"):
        run(needles_command, str(file))


def run_shipped(name: str) -> Path:
    from headprobe.home import shipped_needle_sets

    return shipped_needle_sets()[name]


def test_an_unknown_set_or_id_is_refused() -> None:
    with pytest.raises(OptionError, match="no needle set and no file 'ages'; there are retrieval"):
        run(needles_command, "ages")


def test_what_can_be_shown_is_said_where_nothing_was_found() -> None:
    sets = "sets are retrieval, reasoning, nonliteral; ids are those inside"
    with pytest.raises(OptionError) as caught:
        run(needles_command, "--show", "age-99")
    told = f"no needle set, no needle id and no file 'age-99'; {sets} (retrieval-01 to retrieval-36, ...)"
    assert str(caught.value) == told


def test_only_the_sets_given_are_searched() -> None:
    told = r"no needle set, no needle id 'retrieval-01'; sets are reasoning; .* \(reasoning-01 to reasoning-36\)$"
    with pytest.raises(OptionError, match=told):
        run(needles_command, "reasoning", "--show", "retrieval-01")


def test_haystacks_lists_the_shipped_ones_and_all() -> None:
    lines = run(haystacks_command).splitlines()
    assert lines[0].split() == ["name", "words", "paragraphs", "files", "sha256"]
    assert [line.split()[0] for line in lines[1:]] == ["essays", "handbook", "stories", "all"]
    essays = load_haystack("essays")
    assert lines[1].split()[1:] == [f"{essays.num_words:,}", str(len(essays.paragraphs)), "8", essays.sha256[:12]]


def test_haystacks_as_json_names_sources() -> None:
    (record,) = json.loads(run(haystacks_command, "stories", "--json"))
    assert record["num_words"] == load_haystack("stories").num_words
    assert record["num_files"] == len(record["sources"]) == 7
    assert record["sha256"] == load_haystack("stories").sha256


def test_haystacks_shows_a_first_paragraph(tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("One two.\n\nThree.", encoding="utf-8")
    assert run(haystacks_command, "--show", str(file)) == "One two.\n"
    assert json.loads(run(haystacks_command, "--show", str(file), "--json"))["first_paragraph"] == "One two."


def test_haystacks_shows_one_or_lists_but_drops_no_name_in_silence() -> None:
    with pytest.raises(OptionError, match="--show essays prints one haystack: leave out stories all, or"):
        run(haystacks_command, "stories", "all", "--show", "essays")


def test_haystacks_refuses_an_unknown_name() -> None:
    with pytest.raises(OptionError, match="there are essays, handbook, stories, all"):
        run(haystacks_command, "novels")


def test_listing_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys; from headprobe.commands.needles import needles_command; needles_command(None, None, False);"
        "from headprobe.commands.haystacks import haystacks_command; haystacks_command(None, None, False);"
        "assert not {'torch', 'transformers', 'matplotlib'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

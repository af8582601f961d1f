"""`headprobe score` as a user types it, on the bundled model."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from headprobe.models.catalog import bundled_model_folder
from tests.conftest import CliResult
from tests.tiny_models import build_tiny_model

RunCli = Callable[..., CliResult]
SMALL = ("--lengths", "256", "--depths", "3", "--needles-per-cell", "1")


def test_json_gives_path_counts_and_top_heads_on_stdout_alone(cli: RunCli, tmp_path: Path) -> None:
    result = cli("score", *SMALL, "--json")
    record = json.loads(result.out)
    assert result.code == 0
    assert (record["path"], record["num_trials"]) == ("scores/demo--r2.json", 3)
    assert set(record) == {"path", "method", "num_trials", "num_passed", "top_heads"}
    assert set(record["top_heads"][0]) == {"layer", "head", "score"}
    assert (tmp_path / "scores" / "demo--r2.json").exists()


def test_several_methods_give_a_list_and_a_file_each(cli: RunCli) -> None:
    result = cli("score", *SMALL, "--method", "r2,value", "--json")
    assert [r["path"] for r in json.loads(result.out)] == ["scores/demo--r2.json", "scores/demo--value.json"]
    assert all(Path(r["path"]).exists() for r in json.loads(result.out))


def test_the_table_shows_pass_rates_top_heads_with_intervals_and_the_path(cli: RunCli) -> None:
    result = cli("score", *SMALL, "-o", "mine.json")
    lines = result.out.splitlines()
    assert lines[0].endswith("of 3 trials passed; by tokens (rows) and depth in percent (columns):")
    assert lines[2].split() == ["tokens", "0", "50", "100"]
    assert "top heads by r2:" in lines
    assert lines[lines.index("top heads by r2:") + 2].split() == [
        "rank",
        "layer",
        "head",
        "score",
        "95",
        "%",
        "interval",
        "share",
    ]
    assert lines[-1] == "written to mine.json"


def test_a_dry_run_prints_the_plan_and_writes_nothing(cli: RunCli, tmp_path: Path) -> None:
    result = cli("score", "--dry-run", "--json")
    plan = json.loads(result.out)
    assert plan["num_trials"] == 5 * 10 * 2
    assert plan["lengths"][-1] == 2048
    assert plan["tokens_to_compute"] < 0.65 * plan["tokens"]
    assert plan["kv_bytes"] > 0
    assert plan["seconds"] > 0
    assert list(tmp_path.iterdir()) == []


def test_dumped_prompts_can_be_audited(cli: RunCli, tmp_path: Path) -> None:
    result = cli("score", *SMALL, "--dump-prompts", "prompts.jsonl", "-o", "s.json")
    assert result.code == 0
    trials = {t["id"] for t in json.loads((tmp_path / "s.json").read_text())["trials"]}
    records = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(bundled_model_folder())
    assert {r["trial"] for r in records} == trials
    for record in records:
        assert set(record) >= {"trial", "input_ids", "answer_span", "distractor_span", "answer_ids", "text"}
        assert tokenizer(record["text"])["input_ids"] == record["input_ids"]
        first, last = record["answer_span"]
        inside = tokenizer.decode(record["input_ids"][first:last]).strip()
        assert inside == tokenizer.decode(record["answer_ids"]).strip()


def test_a_second_run_does_not_overwrite_in_silence(cli: RunCli, tmp_path: Path) -> None:
    cli("score", *SMALL)
    before = (tmp_path / "scores" / "demo--r2.json").read_bytes()
    result = cli("score", *SMALL)
    assert result.code == 10
    assert result.err == ("headprobe: error: scores/demo--r2.json already exists; --overwrite replaces it\n")
    assert (tmp_path / "scores" / "demo--r2.json").read_bytes() == before
    assert cli("score", *SMALL, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--lengths", "4k"], 5, "4096"),
        (["--lengths", "0"], 2, "length 0 must be at least 1 token"),
        (["--lengths", "12x"], 2, "12x"),
        (["--lengths", "40"], 5, "length 40 is too small"),
        (["--max-length", "0"], 2, "length 0 must be at least 1 token"),
        (["--lengths", "256", "--max-length", "1k"], 2, "leave out the longest length 1024"),
        (["--depths", "few"], 2, "Invalid value for '--depths'"),
        (["--wobble"], 2, "No such option"),
        (["--method", "r3"], 2, "unknown method 'r3': choose from r2, retrieval"),
        (["--needles", "nope"], 2, "nope"),
        (["--haystack", "nope"], 2, "nope"),
        (["--depths", "0"], 2, "0"),
        (["--limit", "0"], 2, "the limit must be at least 1 trial, got 0"),
        (["--prefill-chunk", "0"], 2, "--prefill-chunk is 0, need at least 1"),
        (["--model", "no/such-model"], 4, "no/such-model"),
        (["--model", "./nowhere"], 4, "nowhere"),
        (["--dtype", "int8"], 2, "int8"),
        (["--device", "cuda:99"], 2, "cuda:99"),
        (["--method", "contrast", "--needles", "retrieval"], 2, "needs needles with a distractor"),
        (["--method", "r2,value", "-o", "x.json"], 2, "2 methods cannot share the file 'x.json'"),
    ],
)
def test_bad_input_is_one_line_with_the_value_and_an_exit_code(
    cli: RunCli, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    result = cli("score", *arguments)
    assert (result.code, result.out) == (code, "")
    assert result.err.startswith("headprobe: error: ")
    assert result.err.count("\n") == 1
    assert message in result.err
    assert not (tmp_path / "scores").exists()


def test_a_broken_needle_line_is_reported_with_file_line_and_reason(cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text('\n{"id": "a"}\n')
    result = cli("score", "--needles", "mine.jsonl")
    assert result.code == 3
    assert result.err.startswith("headprobe: error: mine.jsonl:2: ")


def test_a_model_that_answers_nothing_ends_with_6_and_shows_what_it_said(cli: RunCli, tmp_path: Path) -> None:
    folder = build_tiny_model("llama", tmp_path)
    result = cli("score", "--model", folder, "--lengths", "600", "--depths", "3")
    assert result.code == 6
    assert "the model answered none of 6 trials" in result.err
    assert result.err.count("\n") == 1


def test_a_chat_template_is_used_unless_it_is_switched_off(cli: RunCli, tmp_path: Path) -> None:
    from tests.tiny_models import CHAT_TEMPLATE

    folder = build_tiny_model("llama", tmp_path, chat_template=CHAT_TEMPLATE)
    common = ("score", "--model", folder, "--lengths", "700", "--depths", "2", "--dry-run")
    cli(*common, "--dump-prompts", "with.jsonl")
    cli(*common, "--dump-prompts", "without.jsonl", "--no-chat-template")
    assert "[user] " in json.loads((tmp_path / "with.jsonl").read_text().splitlines()[0])["text"]
    assert "[user] " not in json.loads((tmp_path / "without.jsonl").read_text().splitlines()[0])["text"]


# -- nothing is lost ------------------------------------------------------------------------------------------------


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused must be refused before a model is loaded."""

    def fail(*_: object, **__: object) -> None:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr("headprobe.commands.score.load_model", fail)


def unfinished(cli: RunCli, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    """A run that was interrupted after two of its three trials."""
    from headprobe.commands.score_output import ScoreProgress

    finished = []

    def update(self: ScoreProgress, record: object) -> None:
        finished.append(record)
        if len(finished) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as changed:
        changed.setattr(ScoreProgress, "update", update)
        assert cli("score", *SMALL, "-o", "s.json", *arguments).code == 130


@pytest.mark.parametrize("output", ["q.journal", "./q.JOURNAL", "link"])
def test_the_journals_name_is_no_output(cli: RunCli, no_model: None, tmp_path: Path, output: str) -> None:
    (tmp_path / "q.journal").write_text("my notes")
    (tmp_path / "link.journal").symlink_to("link")
    done = cli("score", "-o", output, "--overwrite")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "and the run's journal " in done.err
    assert (tmp_path / "q.journal").read_text() == "my notes"


def test_prompts_and_scores_in_one_file_are_refused(cli: RunCli, no_model: None, tmp_path: Path) -> None:
    done = cli("score", "-o", "a.json", "--dump-prompts", "x/../a.json", "--overwrite")
    assert done.code == 2
    told = "the output a.json and --dump-prompts x/../a.json are the same file: give each its own name"
    assert done.err == f"headprobe: error: {told}\n"
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_does_not_write_its_prompts_over_the_needles(cli: RunCli, no_model: None, tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    given = ("--needles", "mine.jsonl", "--dump-prompts", "./mine.jsonl", "--overwrite")
    assert cli("score", *given, "--dry-run").code == 2
    assert (tmp_path / "mine.jsonl").read_text() == "{}"


def test_resuming_does_not_replace_other_prompts(cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unfinished(cli, monkeypatch, "--dump-prompts", "p.jsonl")
    prompts = (tmp_path / "p.jsonl").read_bytes()
    (tmp_path / "mine").write_text("mine")
    refused = cli("score", *SMALL, "-o", "s.json", "--resume", "--dump-prompts", "mine")
    assert (refused.code, (tmp_path / "mine").read_text()) == (10, "mine")
    assert cli("score", *SMALL, "-o", "s.json", "--resume", "--dump-prompts", "p.jsonl").code == 0
    assert (tmp_path / "p.jsonl").read_bytes() == prompts


FIELDS = ("scores", "response", "f1", "rouge1_recall", "deciding_words", "chose", "num_steps", "num_read")


def test_a_journal_line_without_a_field_is_an_error_with_its_place(
    cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(cli, monkeypatch)
    path = tmp_path / "s.journal"
    lines = path.read_bytes().splitlines(keepends=True)
    for field in FIELDS:
        record = json.loads(lines[1])
        del record[field]
        path.write_bytes(lines[0] + json.dumps(record).encode() + b"\n" + lines[2])
        done = cli("score", *SMALL, "-o", "s.json", "--resume")
        assert (done.code, done.err.count("\n")) == (3, 1)
        assert done.err.startswith("headprobe: error: s.journal:2: damaged trial ")
        assert f"the field '{field}' is missing" in done.err
    path.write_bytes(lines[0] + lines[2])
    assert cli("score", *SMALL, "-o", "s.json", "--resume").code == 0


def test_a_trial_whose_line_was_cut_runs_again_and_that_is_said(
    cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unfinished(cli, monkeypatch)
    path = tmp_path / "s.journal"
    path.write_bytes(path.read_bytes()[:-100])
    done = cli("score", *SMALL, "-o", "s.json", "--resume")
    assert done.code == 0
    assert "headprobe: note: the last line of s.journal was cut short; it is dropped" in done.err


@pytest.mark.parametrize(
    ("output", "told"),
    [
        ("file/s.json", "cannot write file/s.journal: "),
        ("x" * 251 + ".json", "a name of 256 bytes is too long, the limit is 255"),
    ],
)
def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(
    cli: RunCli, no_model: None, tmp_path: Path, output: str, told: str
) -> None:
    (tmp_path / "file").write_text("")
    done = cli("score", "-o", output)
    assert (done.code, done.err.count("\n")) == (11, 1)
    assert told in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_whose_name_is_as_long_as_can_be_is_written(cli: RunCli, tmp_path: Path) -> None:
    name = "中" * 83 + "x.json"  # 255 bytes
    assert cli("score", *SMALL, "-o", name).code == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--depths", "999999999999"], "999,999,999,999 depths are too many, need at most 1,000"),
        (["--depths", "1000000"], "1,000,000 depths are too many, need at most 1,000"),
        (["--lengths", ",".join(map(str, range(1, 2000)))], "1,999 lengths are too many, need at most 1,000"),
        (["--needles-per-cell", "100000"], "100,000 needles per cell are too many, need at most 10,000"),
    ],
)
@pytest.mark.parametrize("command", ["score", "eval needles"])
def test_plans_without_end_are_refused_before_the_model_is_loaded(
    cli: RunCli, command: str, arguments: list[str], message: str
) -> None:
    result = cli(*command.split(), "--model", "./nowhere", *arguments)
    assert (result.code, result.out, result.err) == (2, "", f"headprobe: error: {message}\n")


def test_more_lengths_than_a_plan_can_have_are_refused(cli: RunCli) -> None:
    result = cli("score", "--model", "./nowhere", "--num-lengths", "5000")
    assert (result.code, result.err) == (2, "headprobe: error: 5,000 lengths are too many, need at most 1,000\n")


def test_the_depth_reached_is_told_before_and_kept_in_the_file(cli: RunCli, tmp_path: Path) -> None:
    plan = json.loads(cli("score", *SMALL, "--dry-run", "--json").out)
    assert len(plan["depths_reached"]) == len(plan["depths"]) == 3
    assert plan["depths_reached"][0] == 0.0
    cli("score", *SMALL, "--dump-prompts", "prompts.jsonl", "-o", "s.json")
    dumped = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    trials = json.loads((tmp_path / "s.json").read_text())["trials"]
    assert {t["id"]: t["depth_reached"] for t in trials} == {r["trial"]: r["depth_reached"] for r in dumped}
    assert sorted(r["depth_reached"] for r in dumped) == sorted(plan["depths_reached"])


def needle_file(tmp_path: Path, fact: str) -> Path:
    path = tmp_path / "mine.jsonl"
    fields = {"id": "n", "kind": "retrieval", "relation": "r", "facts": [fact], "answer": fact, "question": "What?"}
    path.write_text(json.dumps(fields))
    return path


@pytest.mark.parametrize("command", ["score", "eval needles"])
def test_equal_prompts_are_told_with_where_they_really_stand(cli: RunCli, tmp_path: Path, command: str) -> None:
    needles = needle_file(tmp_path, "Ada keeps bees.")
    (tmp_path / "two.txt").write_text(
        "The harbour lay still and grey that day. Nobody came to see it before the evening."
    )
    common = ["--needles", needles, "--haystack", "two.txt", "--depths", "9", "--needles-per-cell", "1", "--dry-run"]
    extra = ["--policies", "full"] if command == "eval needles" else []
    result = cli(*command.split(), *common, *extra, "--lengths", "60")
    assert result.code == 0, result.err
    told = "prompts are identical to one at another depth (of all possible positions, 0 % is the nearest to both), such"
    assert told in result.err
    assert cli(*command.split(), *common[:4], "--depths", "2", *common[6:], *extra, "--lengths", "60").err == ""


def test_prompts_without_room_for_background_say_so(cli: RunCli, tmp_path: Path) -> None:
    needles = needle_file(tmp_path, "Ada keeps bees.")
    too_short = cli("score", "--needles", needles, "--lengths", "10", "--depths", "3", "--dry-run").err
    least = too_short.rpartition("it takes ")[2].split()[0]
    result = cli("score", "--needles", needles, "--lengths", least, "--depths", "3", "--dry-run")
    told = "2 of 3 prompts are identical to one at another depth (besides needle and question there is no room"
    assert told in result.err


@pytest.mark.parametrize("suffix", ["।", ""])
def test_a_haystack_without_full_stops_gives_different_prompts_and_no_warning(
    cli: RunCli, tmp_path: Path, suffix: str
) -> None:
    words = "नदी के पास एक पुराना गाँव है" if suffix else "เมืองเล็กตั้งอยู่ริมแม่น้ำและเงียบสงบ"
    (tmp_path / "h.txt").write_text(f"{words}{suffix} " * 80)
    needles = needle_file(tmp_path, "रवि बाँसुरी बजाता है।")
    common = ("score", "--needles", needles, "--haystack", "h.txt", "--lengths", "1500", "--depths", "5", "--dry-run")
    result = cli(*common, "--json")
    assert (result.code, result.err) == (0, "")
    plan = json.loads(result.out)
    assert plan["depths_reached"] == [pytest.approx(depth, abs=6) for depth in plan["depths"]]


def test_a_long_run_reports_now_and_then_in_a_log_what_is_done_and_left(
    cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("headprobe.commands.score_output.monotonic", itertools.count(0.0, 10.0).__next__)
    assert "trials" not in cli("score", *SMALL, "-o", "short.json").err
    monkeypatch.setattr("headprobe.commands.score_output.LINE_SECONDS", 20.0)
    told = [line for line in cli("score", *SMALL, "-o", "long.json").err.splitlines() if "trials" in line]
    assert told == ["headprobe: 2 of 3 trials, 100% passed, 20 s so far, about 9 s left"]  # the last prompt is shorter


def test_a_log_is_not_silent_for_more_than_two_minutes(cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headprobe.commands.score_output.LINES", 1)  # one line, at the end, unless trials take long
    monkeypatch.setattr("headprobe.commands.score_output.monotonic", itertools.count(0.0, 59.0).__next__)
    assert "trials" not in cli("score", *SMALL, "-o", "short.json").err
    monkeypatch.setattr("headprobe.commands.score_output.monotonic", itertools.count(0.0, 61.0).__next__)
    assert "2 of 3 trials, 100% passed, 2 min so far" in cli("score", *SMALL, "-o", "long.json").err


def test_the_pace_of_a_resumed_run_is_its_own(cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    more = ("--depths", "4")
    unfinished(cli, monkeypatch, *more)
    monkeypatch.setattr("headprobe.commands.score_output.LINE_SECONDS", 0.0)
    monkeypatch.setattr("headprobe.commands.score_output.monotonic", itertools.count(0.0, 10.0).__next__)
    done = cli("score", *SMALL, *more, "-o", "s.json", "--resume")
    assert done.code == 0
    told = [line for line in done.err.splitlines() if "trials, " in line]
    assert told == ["headprobe: 3 of 4 trials, 100% passed, 10 s so far, about 9 s left"]  # the last prompt is shorter

from __future__ import annotations

import json

from tests.pictures.report.conftest import score_file


def test_the_report_is_one_file(cli, tmp_path):
    score_file(tmp_path / "a.json")
    done = cli("report", "a.json")
    page = (tmp_path / "report.html").read_bytes()
    assert (done.code, done.out, done.err) == (0, f"report: report.html ({len(page):,} bytes)\n", "")
    assert page.startswith(b"<!doctype html>")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "report.html"]


def test_json_prints_path_and_size(cli, tmp_path):
    for name in ("a.json", "b.json"):
        score_file(tmp_path / name)
    printed = json.loads(cli("report", "a.json", "b.json", "-o", "deep/page.html", "--title", "Ours", "--json").out)
    page = tmp_path / "deep" / "page.html"
    assert printed == {"path": "deep/page.html", "bytes": page.stat().st_size, "files": ["a.json", "b.json"]}
    assert "<title>Ours</title>" in page.read_text(encoding="utf-8")


def test_a_report_is_not_replaced_unasked(cli, tmp_path):
    score_file(tmp_path / "a.json")
    (tmp_path / "report.html").write_text("mine", encoding="utf-8")
    refused = cli("report", "a.json")
    assert (refused.code, refused.err) == (
        10,
        "headprobe: error: report.html already exists; --overwrite replaces it\n",
    )
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "mine"
    assert cli("report", "a.json", "--overwrite").code == 0


def test_a_report_ends_in_html(cli, tmp_path):
    score_file(tmp_path / "a.json")
    refused = cli("report", "a.json", "-o", "report.pdf")
    assert (refused.code, refused.err) == (2, "headprobe: error: cannot write report.pdf: a report ends in .html\n")


def test_a_broken_file_ends_the_report(cli, tmp_path):
    (tmp_path / "a.json").write_text("{", encoding="utf-8")
    refused = cli("report", "a.json")
    assert refused.code == 3
    assert refused.err.startswith("headprobe: error: a.json:")
    assert not (tmp_path / "report.html").exists()


def test_a_model_that_is_not_the_files_is_refused(cli, tmp_path):
    score_file(tmp_path / "a.json")
    refused = cli("report", "a.json", "--model", "llama3-8b")
    assert refused.code == 2
    assert "a.json has 4 layers of 8 query heads, --model llama3-8b 32 layers of 32 query and 8 KV heads" in refused.err

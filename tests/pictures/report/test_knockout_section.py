from __future__ import annotations

from headprobe.pictures.report.knockout import causal_link, causal_section
from headprobe.pictures.report.report import report_html
from headprobe.scores.any_scores import read_any
from headprobe.scores.causal import with_causal
from headprobe.scores.score_file import write_score_file
from tests.pictures.report.conftest import HOSTILE
from tests.pictures.test_knockout import result


def test_the_report_shows_results_where_a_file_has_them(files, tmp_path):
    plain = files("a.json")
    assert causal_section([plain], ["a.json"]) == causal_link("") == ""
    assert b"Do the heads matter?" not in report_html([plain])
    path = write_score_file(tmp_path / "b.json", with_causal(plain.native, result(verdict=HOSTILE)))
    held = read_any(path)
    html = causal_section([held], ["b.json"])
    assert "<h3>20 prompts, heads off by mask</h3>" in html
    assert (
        "<th scope=row>1</th><td>70 %</td><td>60 to 80</td><td>90 %</td><td>80 to 100</td><td>+0.50</td><td>+0.10</td>"
        in html
    )
    assert "<th scope=row>48</th><td>70 %</td><td>60 to 80</td><td>–</td><td>–</td><td>+0.50</td><td>–</td>" in html
    assert "With all heads on: 90 % answered, loss on plain text 2.00 nats per token." in html
    page = report_html([plain, held]).decode()
    assert '<a href="#causal">Knockout</a>' in page
    assert "<h3>b.json: 20 prompts, heads off by mask</h3>" in page
    assert HOSTILE not in page

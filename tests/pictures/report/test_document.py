from __future__ import annotations

import json
import re
from base64 import b64encode
from hashlib import sha256
from html.parser import HTMLParser

import numpy as np
import pytest

from headprobe.errors import OptionError
from headprobe.pictures.report import report as reports
from headprobe.pictures.report.record import flat
from headprobe.pictures.report.report import MAX_BYTES, SCRIPTS, asset, embedded, file_names, report_html
from headprobe.scores.any_scores import read_any
from tests.pictures.report.conftest import HOSTILE


class Reader(HTMLParser):
    """Collects elements with their attributes, and the text of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._inside: str | None = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._inside = dict(attrs).get("id") or tag

    def handle_endtag(self, tag):
        self._inside = None

    def handle_data(self, data):
        if self._inside:
            self.texts[self._inside] = self.texts.get(self._inside, "") + data


def test_the_page_names_no_outside_resource(files):
    html = report_html([files()]).decode()
    addresses = [
        value
        for tag, attributes in Reader(html).elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "action", "data", "poster")
    ]
    assert all(value.startswith(("#", "data:")) for value in addresses)
    assert re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|import\(", asset("style.css") + html) == []


def test_the_policy_allows_this_script_and_style_only(files):
    reader = Reader(report_html([files()]).decode())
    (policy,) = [a["content"] for tag, a in reader.elements if a.get("http-equiv") == "Content-Security-Policy"]
    hashes = {
        kind: "sha256-" + b64encode(sha256(reader.texts[kind].encode()).digest()).decode()
        for kind in ("script", "style")
    }
    assert policy == (
        f"default-src 'none'; script-src '{hashes['script']}'; style-src '{hashes['style']}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def test_texts_of_strangers_make_no_elements(files):
    plain = Reader(report_html([files("a.json")]).decode())
    hostile = Reader(report_html([files("b.json", name=HOSTILE)], title=HOSTILE).decode())
    assert [tag for tag, _ in plain.elements] == [tag for tag, _ in hostile.elements]
    answers = [row[5] for row in json.loads(hostile.texts["data"])["files"][0]["answers"]]
    assert HOSTILE[:30] in "".join(answers)


def test_embedded_json_cannot_end_its_script():
    text = embedded([HOSTILE])
    assert not set("<>&") & set(text)
    assert text.isascii()
    assert json.loads(text) == [HOSTILE]


def test_the_scripts_make_no_markup_from_text():
    script = "".join(asset(f"{name}.js") for name in SCRIPTS)
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script) == []


def test_the_same_files_give_the_same_bytes(files):
    assert report_html([files("a.json")]) == report_html([files("a2.json")]).replace(b"a2.json", b"a.json")


def test_a_large_model_stays_below_the_limit(files):
    scores = [files(f"{i}.json", shape=(80, 64), kv_heads=8, seed=i) for i in range(1)]
    assert len(report_html(scores)) < MAX_BYTES == 1_000_000


def test_too_much_for_a_page_is_refused(files, monkeypatch):
    monkeypatch.setattr(reports, "MAX_BYTES", 1000)
    with pytest.raises(OptionError, match=r"the report would take \d\d,\d{3} bytes, the limit is 1,000: give fewer"):
        report_html([files()])


@pytest.mark.parametrize(("count", "advice"), [(1, "give fewer heads than 16$"), (2, "give fewer files$")])
def test_advice_fits_the_number_of_files(files, monkeypatch, count, advice):
    monkeypatch.setattr(reports, "MAX_BYTES", 1000)
    with pytest.raises(OptionError, match=advice):
        report_html([files(f"{i}.json", shape=(2, 8), kv_heads=2) for i in range(count)])


@pytest.mark.slow
def test_one_file_of_the_largest_table_fits_and_the_page_says_what_is_left_out(tmp_path):
    values = np.random.default_rng(0).random(2**16).tolist()
    (tmp_path / "large.json").write_text(json.dumps({f"{i // 256}-{i % 256}": [v, v] for i, v in enumerate(values)}))
    page = report_html([read_any(tmp_path / "large.json")])
    assert len(page) < MAX_BYTES
    told = "To stay small, this page leaves out intervals and digits of the scores beyond 5."
    assert told.encode() in page
    assert f"{values[0]:.5g},{values[1]:.5g},".encode() in page


@pytest.mark.parametrize("count", [0, 9])
def test_a_report_takes_1_to_8_files(files, count):
    with pytest.raises(OptionError, match=f"a report takes 1 to 8 files, got {count}"):
        report_html([files("a.json")] * count if count == 0 else [files(f"{i}.json") for i in range(count)])


def test_files_of_one_name_are_told_apart(files, tmp_path):
    (tmp_path / "deep").mkdir()
    scores = [files("a.json"), files("deep/a.json"), files("b.json")]
    assert file_names(scores) == [f"{tmp_path.name}/a.json", "deep/a.json", "b.json"]
    assert file_names([scores[2], scores[2]]) == [f"{tmp_path.name}/b.json (1)", f"{tmp_path.name}/b.json (2)"]


def test_without_scripts_the_best_heads_are_there(keyed):
    html = report_html([keyed([[[0.25, 0.5]]])]).decode()
    noscript = html[html.index("<noscript>") : html.index("</noscript>")]
    assert "<tr><th scope=row>1</th><td>0</td><td>1</td><td>0.5</td></tr>" in noscript


def test_provenance_is_flat_and_short():
    entries = flat({"a": {"b": [1, 2.5, None]}, "long": "x" * 1000, "empty": {}, "on": True})
    assert entries[0] == ("a b", "1, 2.5, none")
    assert len(entries[1][1]) == 400
    assert entries[2:] == [("empty", "{}"), ("on", "yes")]


def data_of(*scores):
    return json.loads(Reader(report_html(list(scores)).decode()).texts["data"])


def test_a_native_file_as_the_page_knows_it(files):
    scores = files()
    (file,) = data_of(scores)["files"]
    assert file["mean"] == scores.mean.ravel().tolist()
    assert (file["layers"], file["width"], file["groups"], file["headDim"]) == (4, 8, 4, 16)
    assert file["trials"] == scores.native.num_passed
    assert [len(values) for values in file["intervals"].values()] == [32] * 5
    low, high = np.array(file["intervals"]["low"]), np.array(file["intervals"]["high"])
    assert (low <= scores.mean.ravel() + 1e-9).all()
    assert (high >= scores.mean.ravel() - 1e-9).all()
    assert sum(cell[3] for cell in file["coverage"]["cells"]) == scores.native.num_trials


def test_a_foreign_file_as_the_page_knows_it(keyed):
    (file,) = data_of(keyed([[[0.25, 0.5]], [[0.25, 0.5]], [[0.5, 0.0]]]))["files"]
    assert (file["trials"], file["distinct"]) == (3, 2)
    assert (file["groups"], file["coverage"], file["answers"]) == (None, None, None)
    assert file["intervals"]["above"] == [3, 2]


def test_files_of_two_models_are_told_not_to_compare(files):
    (pair,) = data_of(files("a.json"), files("b.json", shape=(2, 8)))["pairs"]
    assert "only files of one geometry can be compared" in pair["refused"]

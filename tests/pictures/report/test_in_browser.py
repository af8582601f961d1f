"""The report in a headless Chromium."""

from __future__ import annotations

import json

import numpy as np
import pytest

from headprobe.compression.budgets import head_score_budgets
from headprobe.scores.head_scores import rank_heads
from tests.pictures.report.budget_cases import budget_cases, wanted_budgets
from tests.pictures.report.conftest import HOSTILE

CELLS = "[...document.querySelectorAll('#heads .grid-frame svg rect:not(.ring):not(.cursor)')]"
ROWS = "[...document.querySelectorAll('#heads-table tbody tr')]"
TIP = "document.getElementById('tip')"


@pytest.fixture
def opened(chromium, page):
    """Open a report about these files; the page must not complain, nor ask for anything."""

    def load(*scores, **options):
        path = page(*scores)
        chromium.open(path, **options)
        return chromium

    yield load
    assert chromium.problems == []
    assert [address for address in chromium.requests if not address.startswith(("file:", "data:"))] == []


def column(browser, number):
    return browser.evaluate(f"{ROWS}.map((row) => row.children[{number}].textContent)")


def header(number):
    return f"document.querySelectorAll('#heads-table thead button')[{number}]"


def test_hovering_a_head_shows_its_values(opened, files):
    scores = files()
    browser = opened(scores)
    layer, head, score = rank_heads(scores.mean)[2]
    browser.hover(f"{CELLS}[{layer * 8 + head}]")
    told = browser.evaluate(f"{TIP}.innerText").split("\n")
    interval = browser.evaluate("document.getElementById('data').textContent")
    low, high = (json.loads(interval)["files"][0]["intervals"][end][layer * 8 + head] for end in ("low", "high"))
    assert told[0] == f"Layer {layer}, head {head}"
    facts = dict(zip(told[1::2], told[2::2], strict=True))
    assert float(facts["Score"]) == pytest.approx(score, rel=1e-3)
    assert facts["Rank"] == "3 of 32"
    assert [float(end) for end in facts["95 % interval"].split(" to ")] == pytest.approx([low, high], rel=1e-3)
    assert facts["Trials"].endswith(f" of {scores.native.num_passed}")
    assert not browser.evaluate(f"{TIP}.hidden")
    assert browser.evaluate("document.querySelector('#heads .card-title').textContent") == told[0]


def test_the_tip_goes_with_the_pointer(opened, files):
    browser = opened(files())
    browser.hover(f"{CELLS}[5]")
    browser.hover("document.querySelector('h1')")
    assert browser.evaluate(f"{TIP}.hidden")


def test_the_arrow_keys_move_and_tell(opened, files):
    browser = opened(files())
    browser.evaluate("document.querySelector('#heads .grid-frame').focus()")
    best = rank_heads(files("again.json").mean)[0][:2]
    browser.press("Home")
    browser.press("Home")
    assert browser.evaluate("document.getElementById('spoken').textContent").startswith(
        f"Layer {best[0]}, head 0: Score"
    )
    browser.press("ArrowRight")
    browser.press("Enter")
    browser.press("ArrowRight")
    assert browser.evaluate("document.querySelector('#heads .card-title').textContent") == f"Layer {best[0]}, head 2"
    browser.evaluate("document.activeElement.blur()")
    assert (
        browser.evaluate("document.querySelector('#heads .card-title').textContent") == f"Layer {best[0]}, head 1kept"
    )


def test_the_table_begins_with_the_best_and_sorts_by_any_column(opened, files):
    scores = files()
    browser = opened(scores)
    ranked = rank_heads(scores.mean)
    assert column(browser, 0) == [str(rank) for rank in range(1, 26)]
    assert list(zip(column(browser, 1), column(browser, 2), strict=True)) == [
        (str(layer), str(head)) for layer, head, _ in ranked[:25]
    ]
    browser.click(header(3))
    browser.click(header(3))
    assert float(column(browser, 3)[0]) == pytest.approx(ranked[-1][2], rel=1e-3, abs=1e-6)
    browser.click(header(1))
    assert column(browser, 1) == [str(layer) for layer in range(4) for _ in range(8)][:25]
    sorts = "[...document.querySelectorAll('#heads-table thead th')].map((cell) => cell.getAttribute('aria-sort'))"
    assert browser.evaluate(sorts) == ["none", "ascending"] + ["none"] * 6
    browser.press("Enter")  # the button has kept the focus
    assert browser.evaluate(sorts)[1] == "descending"
    assert column(browser, 1)[0] == "3"


def test_the_table_turns_pages_and_finds_a_head(opened, files):
    browser = opened(files())
    browser.click("document.querySelectorAll('.pager button')[1]")
    assert column(browser, 0) == [str(rank) for rank in range(26, 33)]
    search = "document.querySelector('#table input')"
    browser.evaluate(f"{search}.value = '2-3'; {search}.dispatchEvent(new Event('input'))")
    assert (column(browser, 1), column(browser, 2)) == (["2"], ["3"])


def test_texts_of_strangers_stay_texts(opened, files):
    browser = opened(files("a.json", name=HOSTILE))
    browser.evaluate("document.querySelector('details').open = true")
    assert browser.evaluate("window.hacked === undefined")
    assert browser.evaluate("document.querySelectorAll('img').length") == 0
    plain = " ".join(HOSTILE.replace("\u2028", " ").split())
    assert plain in browser.evaluate("[...document.querySelectorAll('.answer')].map((cell) => cell.textContent)")
    assert browser.evaluate("document.getElementById('model').textContent").startswith(HOSTILE[:20])


def test_kv_heads_are_the_mean_of_their_query_heads(opened, files):
    scores = files()
    browser = opened(scores)
    select = "document.querySelector('#heads select')"
    browser.evaluate(f"{select}.value = 'kv'; {select}.dispatchEvent(new Event('change'))")
    browser.hover(f"{CELLS}[5]")
    told = browser.evaluate(f"{TIP}.innerText").split("\n")
    assert told[0] == "Layer 1, KV head 1"
    assert float(told[2]) == pytest.approx(scores.native.to_kv_heads()[1, 1], rel=1e-3)


def test_several_files_are_compared_and_chosen(opened, files):
    first, second = files("a.json", seed=0), files("b.json", seed=1)
    browser = opened(first, second)
    assert browser.evaluate("document.querySelectorAll('#comparison circle').length") == 32
    browser.evaluate("document.querySelectorAll('fieldset input')[1].click()")
    assert float(column(browser, 3)[0]) == pytest.approx(float(second.mean.max()), rel=1e-3)
    minus = "[...document.querySelectorAll('#heads select')].at(-1)"
    browser.evaluate(f"{minus}.value = '0'; {minus}.dispatchEvent(new Event('change'))")
    browser.hover(f"{CELLS}[3]")
    told = browser.evaluate(f"{TIP}.innerText").split("\n")
    assert told[1] == "Difference"
    assert float(told[2]) == pytest.approx(float(second.mean[0, 3] - first.mean[0, 3]), rel=1e-3)


@pytest.mark.parametrize("dark", [False, True])
def test_both_themes_can_be_read(opened, files, dark):
    browser = opened(files(), dark=dark)
    luminance = """(element, side) => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d");
      canvas.fillStyle = getComputedStyle(element)[side];
      canvas.fillRect(0, 0, 1, 1);
      const parts = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((part) => part / 255);
      const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
      return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    }"""
    for selector in ("h1", ".quiet", "thead th", "nav a", "summary"):
        ground = "#heads" if selector in (".quiet", "thead th", "summary") else ":root"
        ink, paper = (
            browser.evaluate(f"({luminance})(document.querySelector('{at}'), '{side}')")
            for at, side in ((selector, "color"), (ground, "backgroundColor"))
        )
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector


def test_the_theme_can_be_turned(opened, files):
    browser = opened(files())
    ground = "getComputedStyle(document.documentElement).backgroundColor"
    light = browser.evaluate(ground)
    browser.click("document.getElementById('theme')")
    assert browser.evaluate(ground) != light
    assert browser.evaluate("document.getElementById('theme').textContent") == "Light theme"


@pytest.mark.parametrize("width", [360, 768, 1600])
def test_no_page_is_wider_than_its_window(opened, files, width):
    browser = opened(files("a.json", shape=(6, 64), kv_heads=8), files("long-" * 20 + ".json"), width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width


def test_every_control_has_a_name(opened, files):
    browser = opened(files("a.json"), files("b.json", seed=1))
    nameless = """[...document.querySelectorAll("button, select, input, [tabindex]")].filter((control) =>
      !(control.textContent.trim() && control.tagName === "BUTTON") && !control.labels?.length
      && !control.getAttribute("aria-label")).map((control) => control.outerHTML.slice(0, 120))"""
    assert browser.evaluate(nameless) == []


@pytest.mark.parametrize("kind", ["foreign", "no trials"])
def test_files_that_tell_less_are_shown_too(opened, keyed, tmp_path, kind):
    from headprobe.scores.any_scores import read_any

    (tmp_path / "full_attention_heads.tsv").write_text("1.0\t0.5\n0.0\t0.25\n", encoding="utf-8")
    scores = keyed(np.eye(3)[None]) if kind == "foreign" else read_any(tmp_path / "full_attention_heads.tsv")
    browser = opened(scores)
    assert browser.evaluate("document.querySelector('#coverage .note').textContent").startswith("The file holds")


@pytest.mark.parametrize(
    ("unit", "texts"),
    [
        (1e-3, ["0.005000", "0.001000", "1.000e-6", "0"]),
        (1e-9, ["5.000e-9", "1.000e-9", "1.000e-12", "0"]),
        (1e-300, ["5.000e-300", "1.000e-300", "1.000e-303", "0"]),
    ],
)
def test_scores_of_any_size_are_drawn(opened, keyed, unit, texts):
    """Foreign files hold what they hold; the axis of powers of ten goes down to wherever that is."""
    browser = opened(keyed(unit * np.array([[[5.0, 0.0], [1.0, 0.001]]])))
    assert column(browser, 3) == texts
    ticks = browser.evaluate("[...document.querySelectorAll('#shape .tick-row')].map((tick) => tick.textContent)")
    assert [float(tick) for tick in ticks] == pytest.approx([unit * 10.0**power for power in range(-4, 1)])


def test_a_ranking_has_places_and_no_scores(opened, tmp_path):
    from headprobe.scores.any_scores import read_any

    (tmp_path / "heads.yaml").write_text('attn_head_set: "2-1,0-3"\n', encoding="utf-8")
    browser = opened(read_any(tmp_path / "heads.yaml"))
    assert browser.evaluate(f"{ROWS}.map((row) => row.innerText)") == ["1\t2\t1", "2\t0\t3"]
    assert browser.evaluate("document.querySelector('#heads .card-score').textContent") == "1 of 2"
    assert browser.evaluate("document.querySelectorAll('#budgets input').length") == 0


def test_the_pages_budgets_are_those_of_python(opened, files):
    browser = opened(files())
    cases = list(budget_cases())
    told = json.dumps([[scores.ravel().tolist(), *rest] for scores, *rest in cases])
    found = browser.evaluate(f"{told}.map((values) => headprobe.headScoreBudgets(...values))")
    assert found == wanted_budgets(cases)


def test_the_sliders_change_the_budgets(opened, files):
    scores = files()
    browser = opened(scores)
    for name, place in (("size", 8), ("beta", 1), ("prompt", 2)):
        control = f"document.getElementById('{name}')"
        browser.evaluate(f"{control}.value = {place}; {control}.dispatchEvent(new Event('input'))")
    assert browser.evaluate("[...document.querySelectorAll('.slider output')].map((told) => told.textContent)") == [
        "256", "1.01", "2,048",
    ]  # fmt: skip
    tokens = head_score_budgets(scores.native.to_kv_heads(), 256, floor=8, beta=1.01, prompt_tokens=2048)
    assert browser.evaluate("document.querySelector('.outcome').textContent").startswith(
        f"{256 * 16:,} entries in all: 12.5 % of a full cache. Heads keep {tokens.min()} to {tokens.max():,} tokens"
    )
    shown = browser.evaluate(
        "[...document.querySelectorAll('#budgets .in-cell')].map((text) => Number(text.textContent))"
    )
    assert shown == tokens.ravel().tolist()


def test_a_key_moves_a_slider(opened, files):
    browser = opened(files())
    browser.evaluate("document.getElementById('size').focus()")
    browser.press("ArrowRight")
    assert browser.evaluate("document.querySelector('.slider output').textContent") == "192"

"""Chat templates that run or grow for ever end in one line, and ordinary ones are rendered as transformers does it."""

from __future__ import annotations

import random
import sys
import threading
import time
import tracemalloc

import pytest

from headprobe.errors import ModelError
from headprobe.probes import chat_template
from headprobe.probes.chat_template import MOST_CHARACTERS, _weight, render_message
from headprobe.probes.encoding import resolve_template
from tests.toy_tokenizers import CHAT_TEMPLATE, with_chat_template

MESSAGE = "{{ messages[0].content }}"


def rendered(template: str) -> str:
    return render_message(with_chat_template(template), "Hi <b>", "do without")


def repeated(step: str) -> str:
    return "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = " + step + " %}{% endfor %}" + MESSAGE


@pytest.mark.parametrize(
    "template",
    [
        "{{ 'x' * (10**10) }}", "{{ (10**10) * 'x' }}", "{{ ([0] * 10**10)|length }}", "{{ 10**(10**10) }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        repeated("n.s + n.s"), repeated("n.s ~ n.s"), repeated("[n.s, n.s]|join"),
        repeated("n.s.replace('x', 'xx')"),
        repeated("n.s.join(['x', 'x', 'x']) ~ n.s"), repeated("n.s|replace('x', 'xxx')"),
        repeated("'%s%s' % (n.s, n.s)"),
        repeated("'%s%s'|format(n.s, n.s)"), repeated("'{0}{0}'.format(n.s)"),
        "{% set n = namespace(s='x') %}{% for i in range(60) %}{% set b %}{{ n.s }}{{ n.s }}{% endset %}"
        "{% set n.s = b %}{% endfor %}",
        "{{ 'x'|center(10**10) }}", "{{ 'x'.ljust(10**10) }}", "{{ 'x'.zfill(width=10**10) }}",
        "{{ 'x'|indent(10**9) }}",
        "{{ '%9999999999d' % 1 }}", "{{ '%*d' % (9999999999, 1) }}", "{{ '%9999999999d'|format(1) }}",
        "{{ '{:9999999999}'.format('x') }}", "{{ '{:{}}'.format('x', 9999999999) }}",
        "{{ [1]|tojson(indent=10**10) }}", "{{ 'x'.join(['y' * 100000] * 1000) }}",
        "{{ range(1000)|list|tojson(indent=9999) }}", "{{ ('x\n' * 9999)|indent('y' * 9999) }}",
        "{{ ('\t' * 9999).expandtabs(9999) }}",
        "{{ ('{0}' * 9999).format('x' * 9999) }}", "{{ ('%(a)s' * 9999)|format(a='x' * 9999) }}",
        "{{ ('%(a)s' * 9999) % {'a': 'x' * 9999} }}",
    ],
)  # fmt: skip
def test_a_template_that_grows_is_refused_before_it_has_grown(template: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match="makes more than 1,000,000 characters; do without"):
            rendered(template + MESSAGE)
        assert tracemalloc.get_traced_memory()[1] < 30 * MOST_CHARACTERS
    finally:
        tracemalloc.stop()


NESTED = (  # 2**40 times the same item, in 40 lists of two
    "{% set n = namespace(a=[1], b=[1]) %}"
    "{% for i in range(40) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
)


@pytest.mark.parametrize(
    "use",
    [
        "{{ n.a }}", "{{ n.a|string|length }}", "{{ n.a|tojson|length }}", "{{ n.a|pprint }}",
        "{{ (n.a ~ 'x')|length }}",
        "{{ n.a == n.b }}", "{{ n.a in [n.b] }}", "{{ n.a is eq n.b }}", "{{ 'x'.join([n.a|string]) }}",
        "{{ '%s' % (n.a,) }}", "{{ '{}'.format(n.a) }}", "{{ {'x': n.a} }}", "{% if n.a < n.b %}{% endif %}",
    ],
)  # fmt: skip
def test_lists_that_hold_one_list_many_times_are_refused_where_all_of_it_would_be_read(use: str) -> None:
    with pytest.raises(ModelError, match="makes more than 1,000,000 characters; do without"):
        rendered(NESTED + use + MESSAGE)


@pytest.mark.parametrize(
    "template",
    [
        "{{ range(99999)|map('string')|map('center', 99999)|join|length }}",
        "{{ range(99999)|map('string')|map('center', 99999)|list|length }}",
        "{{ 'x'.join(range(99999)|map('string')|map('center', 99999))|length }}",
        "{% set n = namespace(a=[]) %}{% for i in range(99999) %}{% set n.a = [n.a, 'x' * 99999] %}{% endfor %}",
    ],
)
def test_what_a_template_makes_in_all_has_a_limit_too(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_IN_ALL", 3_000_000)
    with pytest.raises(ModelError, match="makes more than 3,000,000 characters; do without"):
        rendered(template + MESSAGE)


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(9999) %}{% for j in range(9999) %}{% for k in [i, j] %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ lipsum(n=10**9)|length }}",
    ],
)
def test_a_template_that_runs_for_ever_is_stopped(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.2)
    begin, before = time.thread_time(), sys.gettrace()
    with pytest.raises(ModelError, match=r"takes longer than 0\.2 seconds; do without"):
        rendered(template + MESSAGE)
    assert time.thread_time() - begin < 5
    assert sys.gettrace() is before


def test_the_clock_also_runs_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat_template, "MOST_SECONDS", 0.2)
    said: list[str] = []

    def work() -> None:
        try:
            rendered("{% for i in range(9999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}" + MESSAGE)
        except ModelError as error:
            said.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(60)
    assert said == ["the chat template takes longer than 0.2 seconds; do without"]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('system first') }}", "system first"),
        ("{% for %}", "Expected"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
        ("{% for i in range(10**6) %}{% endfor %}", "Range too big"),
        ("{{ nothing.at.all }}", "undefined"),
        ("{{ messages[0].__class__ }}{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_template_that_fails_is_told_with_its_reason(template: str, reason: str) -> None:
    with pytest.raises(ModelError, match=rf"cannot be rendered \(.*{reason}.*\); do without"):
        rendered(template)


@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE,
        "{% generation %}" + MESSAGE + "{% endgeneration %}{{ bos_token ~ eos_token }}",
        "{% for m in messages %}{{ m|tojson }}{% break %}{% endfor %}",
        "{{ '%-9s|%3d' % ('a', 7) }}{{ 'ab' * 3 }}{{ [1] + [2] }}",
        "{% set n = namespace(last=99999999) %}{{ n.last }}{{ 2 ** 9 }}{{ 'x'.replace('x', 'y') ~ 'z'|upper }}",
        "{%- if tools is none and documents is none %}\n {{- messages[0]['content'].split()|join('+') }}\n{%- endif %}",
        "{{ messages[0].content|replace('<', '[')|trim }}{{ '{:>5}'.format('x') }}{{ dict(a=1)|tojson }}",
    ],
)
def test_ordinary_templates_are_rendered_as_transformers_does(template: str) -> None:
    tokenizer = with_chat_template(template)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi <b>"}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert render_message(tokenizer, "Hi <b>", "do without") == expected


def test_the_advice_is_that_of_the_caller() -> None:
    with pytest.raises(ModelError, match="alters the text of a message; leave out --chat"):
        resolve_template(with_chat_template("{{ messages[0].content|upper }}"), advice="leave out --chat")


def written(value: object) -> int:
    """The plain count: everything as often as it would be written."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, dict):
        return len(value) + sum(written(part) for part in (*value, *value.values()))
    return len(value) + sum(written(part) for part in value) if isinstance(value, (list, tuple)) else 0


@pytest.mark.parametrize("seed", range(20))
def test_a_value_weighs_what_would_be_written(seed: int) -> None:
    pick = random.Random(seed)
    made: list[object] = ["", "text", b"bytes", 7, None, [], (), {}]
    for _ in range(40):  # of earlier values, so that many lie in one value several times
        parts = pick.choices(made, k=pick.randrange(4))
        made.append(pick.choice([parts, tuple(parts), dict(zip("abc", parts, strict=False))]))
    for value in made:
        wanted = written(value)
        assert min(_weight(value), MOST_CHARACTERS + 1) == min(wanted, MOST_CHARACTERS + 1)


def test_a_list_that_lies_in_itself_weighs_too_much() -> None:
    inner: list[object] = []
    inner.append([inner])
    assert _weight([inner]) > MOST_CHARACTERS

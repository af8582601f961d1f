"""Chat templates: programs of a model's author, rendered within limits of size and time.

transformers renders them in a sandbox that keeps them from the machine but lets them run, and grow, for ever. Here the
same template first runs in a sandbox of ours that refuses what grows too large, before it is made; and all of it runs
against a clock. These limits hold for mistakes and for what templates usually do. They are no wall against an author
who means harm: a template is to be trusted like the code of a model.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from types import FrameType
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, operators
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from headprobe.errors import ModelError

MOST_CHARACTERS = 1_000_000  # of the rendered text, of any text in between, and items of a list
MOST_IN_ALL = 50_000_000  # characters and items of all that is made on the way, which a template may keep
MOST_SECONDS = 3.0  # of this thread's work
EVENTS_BETWEEN = 200  # looks at the clock
_HOLDERS = (list, tuple, dict)
_HUGE_NUMBER = re.compile(r"\d{7}")  # in a format such as '%9999999d'

_FIXED_DATE = (
    "{%- macro strftime_now(form) -%}{{- form|replace('%Y', '2024')|replace('%m', '07')|replace('%d', '26')"
    "|replace('%B', 'July')|replace('%b', 'Jul')|replace('%A', 'Friday')|replace('%H', '12')|replace('%M', '00')"
    "|replace('%S', '00') -}}{%- endmacro -%}"
)


class _TooMuch(BaseException):
    """A limit is passed. No `Exception`, so that nothing on the way takes it for an error of the template."""


def render_message(tokenizer: Any, content: str, advice: str) -> str:
    """One user message as the tokenizer's chat template renders it, up to where the answer begins.

    Thinking is switched off where the template knows `enable_thinking`, and a template that asks for today's date
    gets a fixed one, so that the same plan gives the same prompts on every day. Raises `ModelError`, which ends with
    `advice`, for a template that fails, takes more than `MOST_SECONDS`, or gives more than `MOST_CHARACTERS`.
    """
    options = {"add_generation_prompt": True, "enable_thinking": False}
    messages = [{"role": "user", "content": content}]
    try:
        template = tokenizer.get_chat_template()
        if "strftime_now" in template:
            template = _FIXED_DATE + template
        with _limited_time():
            _check_growth(template, {**tokenizer.special_tokens_map, **options, "messages": messages})
            return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))
    except _TooMuch as limit:
        raise ModelError(f"the chat template {limit}; {advice}") from None
    except Exception as error:  # a template is a program of its own and may raise anything
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ModelError(f"the chat template cannot be rendered ({reason}); {advice}") from error


@contextmanager
def _limited_time() -> Iterator[None]:
    """Inside the block `_TooMuch` is raised once this thread has worked for `MOST_SECONDS`.

    The interpreter calls a trace function at every line of every function, templates' compiled ones included; unlike
    signals this works in any thread and on any system. What was traced before (a debugger, coverage) comes back.
    """
    end = time.thread_time() + MOST_SECONDS
    events = 0

    def look(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal events
        events += 1
        if events % EVENTS_BETWEEN == 0 and time.thread_time() > end:
            raise _TooMuch(f"takes longer than {MOST_SECONDS:g} seconds")
        return look

    before = sys.gettrace()
    sys.settrace(look)
    try:
        yield
    finally:
        sys.settrace(before)


# -- size -----------------------------------------------------------------------------------------------------------


def _check_growth(template: str, variables: Mapping[str, Any]) -> None:
    """Run the template and raise `_TooMuch` before anything gets too large; its own errors are left to transformers."""
    _limit(len(template))
    length = 0
    try:
        for piece in _environment().from_string(template).generate(**variables, tools=None, documents=None):
            length += len(piece)
            _limit(length)
    except Exception:
        return  # the tokenizer's own rendering, which comes next, says what is wrong


def _limit(size: int, most: int = MOST_CHARACTERS) -> None:
    if size > most:
        raise _TooMuch(f"makes more than {most:,} characters")


def _weight(value: Any) -> int:
    """Characters and items of a value and of all that lies in it, counted as often as it would be written.

    What lies in it many times is looked at once, so that the work grows with what is in memory and not with what would
    be written. Above the limit the result only says that it is above.
    """
    if isinstance(value, (str, bytes)):
        return len(value)
    weights: dict[int, int] = {}  # of the lists and dicts that were looked at, by identity
    entered: set[int] = set()
    looked_at, waiting = 0, [value]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, _HOLDERS) or id(part) in weights:
            continue
        inside = [*part, *part.values()] if isinstance(part, dict) else part
        holders = [each for each in inside if isinstance(each, _HOLDERS)]
        if id(part) not in entered:
            entered.add(id(part))
            looked_at += len(part)
            if looked_at > MOST_CHARACTERS or any(id(each) in entered and id(each) not in weights for each in holders):
                return MOST_CHARACTERS + 1  # the second: it lies in itself
            waiting += [part, *holders]
            continue
        texts = sum(len(each) for each in inside if isinstance(each, (str, bytes)))
        weights[id(part)] = len(part) + texts + sum(weights[id(each)] for each in holders)
        if weights[id(part)] > MOST_CHARACTERS:
            return MOST_CHARACTERS + 1
    return weights.get(id(value), 0)


def _weighed(value: Any) -> Any:
    _limit(_weight(value))
    return value


class _Made:
    """What one rendering has made so far: each result is small enough, and so are all of them."""

    def __init__(self) -> None:
        self._total = 0

    def add(self, value: Any) -> Any:
        """`value`, counted."""
        self._total += _weight(_weighed(value))
        _limit(self._total, MOST_IN_ALL)
        return value

    def listed(self, name: str, given: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of what is called `name`: iterators that are to be joined become lists, whose parts count."""
        if name != "join":
            return given
        return tuple([self.add(each) for each in part] if isinstance(part, Iterator) else part for part in given)

    def joined(self, parts: Any) -> str:
        """The parts as one text."""
        texts = [str(self.add(part)) for part in parts]
        _limit(sum(map(len, texts)))
        return "".join(texts)


def _environment() -> Any:
    """The sandbox that transformers documents for chat templates, with every step that can grow under a limit."""
    made = _Made()

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Code(CodeGenerator):
        def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:  # noqa: N802
            self.write("environment.concat((")
            for part in node.nodes:
                self.visit(part, frame)
                self.write(", ")
            self.write("))")

        def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:  # noqa: N802
            self.write("(")
            self._visit_weighed(node.expr, frame)
            for operand in node.ops:
                self.write(f" {operators[operand.op]} ")
                self._visit_weighed(operand.expr, frame)
            self.write(")")

        def _visit_weighed(self, node: nodes.Expr, frame: Any) -> None:
            self.write("environment.weighed(")
            self.visit(node, frame)
            self.write(")")

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "+", "%"})
        code_generator_class = Code
        concat, weighed = staticmethod(made.joined), staticmethod(_weighed)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            _limit(max(_size_of(operator, left, right), _weight((left, right))))
            return made.add(super().call_binop(context, operator, left, right))

        def call(__self, __context: Any, __callee: Any, *given: Any, **named: Any) -> Any:  # noqa: N805
            owner = getattr(__callee, "__self__", None)
            if isinstance(owner, (str, bytes, list, tuple)):
                given = made.listed(__callee.__name__, given)
                _check_arguments(__callee.__name__, (owner, *given), named)
            return made.add(super().call(__context, __callee, *given, **named))

        def wrap_str_format(self, value: Any) -> Any:
            wrapped = super().wrap_str_format(value)
            return wrapped and _guarded(made, value.__name__, wrapped, value.__self__)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    sandbox = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols], finalize=made.add)
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = raise_exception
    filters: dict[str, Any] = {**sandbox.filters}
    tests: dict[str, Any] = {**sandbox.tests}
    sandbox.filters = {name: _guarded(made, name, function) for name, function in filters.items()}
    sandbox.tests = {name: _guarded(made, name, function) for name, function in tests.items()}
    return sandbox


def _size_of(operator: str, left: Any, right: Any) -> int:
    """About how large the result gets: characters, items, or digits."""
    if operator == "**":
        both = isinstance(left, int) and isinstance(right, int)
        return left.bit_length() * right // 3 if both and right > 0 else 0
    if operator == "%":
        return _format_size(left, right if isinstance(right, tuple) else (right,)) if isinstance(left, str) else 0
    sizes = [len(part) if isinstance(part, (str, bytes, list, tuple)) else None for part in (left, right)]
    if operator == "+":
        return sum(size or 0 for size in sizes)
    times = [part for part in (left, right) if isinstance(part, int)]
    return next((size for size in sizes if size is not None), 0) * (times[0] if times else 0)


def _format_size(form: str, arguments: Any) -> int:
    if _HUGE_NUMBER.search(form):
        return MOST_CHARACTERS + 1
    numbers = [number for number in arguments if isinstance(number, int) and "*" in form]
    fields = form.count("%") + form.count("{")  # each of which may write the longest argument
    return max([0, *numbers, *(fields * _weight(part) for part in arguments)])


def _check_arguments(name: str, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
    """Refuse what would let a filter, or a method of a text or list, make something too large."""
    arguments = [*given, *named.values()]
    texts = [part for part in arguments if isinstance(part, str)]
    largest, weight = max([0, *(number for number in arguments if isinstance(number, int))]), _weight(given)
    _limit(max(largest, weight))
    if name in ("tojson", "indent"):  # by so many spaces, or by a text, for every item or line
        _limit(max([largest, *map(len, texts[1:])]) * weight)
    if name == "expandtabs":
        _limit(largest * texts[0].count("\t") if texts else 0)
    if name in ("format", "format_map"):
        _limit(_format_size(texts[0], arguments[1:]) if texts else 0)
    if name == "replace" and len(texts) >= 3:
        text, old, new = texts[:3]
        _limit(len(text) + text.count(old) * len(new))
    if name == "join":
        parts = next((part for part in arguments if isinstance(part, (list, tuple))), ())
        _limit(sum(len(str(part)) for part in parts) + len(parts) * max([0, *map(len, texts)]))


def _guarded(made: _Made, name: str, function: Callable[..., Any], *owner: Any) -> Callable[..., Any]:
    """`function` of this name (a method of `owner`) that refuses arguments and results that are too large."""

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        given = made.listed(name, given)
        _check_arguments(name, (*owner, *given), named)
        return made.add(function(*given, **named))

    return call

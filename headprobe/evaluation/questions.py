"""Prompts for a compressed cache: a fresh needle in a haystack, or a text and a question of one's own."""

from __future__ import annotations

from dataclasses import dataclass

from headprobe.errors import OptionError
from headprobe.models.loading import LoadedModel
from headprobe.probes.encoding import encode, special_token_in, special_tokens
from headprobe.probes.needle import Needle
from headprobe.probes.prompt import Prompt
from headprobe.probes.template import Template, resolve_template
from headprobe.profiling.run import ScoreOptions, prepare


@dataclass(frozen=True)
class Question:
    """A prompt as tokens. `context_tokens`: where the context ends and the question begins (None: no question apart);
    `needle`: the needle whose answer is expected, None for a prompt of one's own; `source` names it in words."""

    input_ids: tuple[int, ...]
    context_tokens: int | None
    needle: Needle | None
    source: str

    @property
    def expected(self) -> str | None:
        """The right answer, where it is known."""
        return None if self.needle is None else self.needle.answer


def needle_question(
    loaded: LoadedModel,
    length: int | None = None,
    *,
    needles: str = "reasoning",
    haystack: str = "all",
    seed: int = 0,
    chat: bool = True,
) -> Question:
    """A needle in the middle of a haystack, `length` tokens with its answer (default: the model's window)."""
    longest = loaded.window if length is None else length
    options = ScoreOptions(
        needles=needles, haystack=haystack, lengths=(longest,), depths=3, needles_per_cell=1, seed=seed, chat=chat
    )
    prepared = prepare(loaded, options)
    middle = prepared.plan.trials()[1]
    prompt = next(p for p in prepared.prompts if p.trial_id == middle.id)
    template = resolve_template(loaded.tokenizer, chat=chat)
    return Question(prompt.input_ids, context_end(loaded, prompt, template), middle.needle, f"needle {prompt.trial_id}")


def own_question(
    loaded: LoadedModel, text: str, question: str | None, *, chat: bool = False, new_tokens: int = 0, name: str = ""
) -> Question:
    """`text`, and `question` put behind it as the needle prompts do; without one `text` is the whole prompt.

    With `chat` both go through the tokenizer's chat template. Raises `OptionError` for a prompt that, with
    `new_tokens`, is longer than the model's window, for an empty question, and for special tokens in what a template
    is put around: a prompt that is rendered already goes without `question` and `chat`.
    """
    tokenizer = loaded.tokenizer
    if question is not None and not question.strip():
        raise OptionError(f"the question {question!r} is empty")
    if question is None and not chat:
        return _checked(loaded, Question(tuple(encode(tokenizer, text).ids), None, None, name), new_tokens)
    if chat and not tokenizer.chat_template:
        raise OptionError(f"{loaded.name} has no chat template: leave out --chat")
    token = special_token_in(f"{text}\n{question or ''}", special_tokens(tokenizer))
    if token is not None:
        asked = "--chat" if chat else "--question"
        raise OptionError(f"the prompt contains {token!r}, a special token of the tokenizer: leave out {asked}")
    template = resolve_template(tokenizer, chat=chat, advice="leave out --chat")
    if question is None:
        question = ""
        template = resolve_template(tokenizer, "{context}{question}", chat=True, advice="leave out --chat")
    encoded = encode(tokenizer, template.render(text, question), special=not template.chat)
    cut = encoded.tokens_within(len(template.head) + len(text))
    return _checked(loaded, Question(tuple(encoded.ids), cut if question else None, None, name), new_tokens)


def context_end(loaded: LoadedModel, prompt: Prompt, template: Template) -> int:
    """Tokens of a needle prompt up to where its context ends: what ends before the words that lead to the question."""
    encoded = encode(loaded.tokenizer, prompt.text, special=not template.chat)
    begin = encoded.offsets[prompt.question_span.start][0]
    end = prompt.text.rindex(template.middle.strip() or template.middle, 0, begin + 1) if template.middle else begin
    return encoded.tokens_within(end)


def _checked(loaded: LoadedModel, question: Question, new_tokens: int) -> Question:
    tokens = len(question.input_ids)
    if tokens + new_tokens > loaded.window:
        raise OptionError(
            f"the prompt has {tokens} tokens, with {new_tokens} new ones more than the window of {loaded.window}"
        )
    if not tokens:
        raise OptionError("the prompt is empty")
    return question

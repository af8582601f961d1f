"""Prompts of one's own: the same tokens as needle prompts, whatever the tokenizer adds around a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import ModelError, OptionError
from headprobe.evaluation.questions import needle_question, own_question
from headprobe.models.loading import LoadedModel, load_model
from tests.tiny_models import BOS, EOS, build_tiny_model

TEXT, QUESTION = "The green key is under the pot.", "Where is the key?"
CHAT = "{{ bos_token }}User: {{ messages[0]['content'] }}\nBot:"


def load(folder: Path, *, closing: tuple[str, ...] = (), chat_template: str | None = None) -> LoadedModel:
    """A tiny model whose tokenizer puts BOS before a text and `closing` behind it."""
    made = build_tiny_model("llama", folder, chat_template=chat_template)
    path = made / "tokenizer.json"
    data: dict[str, Any] = json.loads(path.read_text())
    processor = data["post_processor"]
    ids = {token["content"]: token["id"] for token in data["added_tokens"]}
    for name in closing:
        processor["single"].append({"SpecialToken": {"id": name, "type_id": 0}})
        processor["special_tokens"][name] = {"id": name, "ids": [ids[name]], "tokens": [name]}
    path.write_text(json.dumps(data))
    return load_model(str(made), device="cpu")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load(tmp_path_factory.mktemp("chatty"), chat_template=CHAT)


@pytest.mark.parametrize("closing", [(EOS,), (EOS, EOS), (EOS, BOS)])
def test_what_a_tokenizer_closes_texts_with_is_in_no_prompt(
    plain: LoadedModel, tmp_path: Path, closing: tuple[str, ...]
) -> None:
    loaded = load(tmp_path, closing=closing)
    assert loaded.tokenizer("a")["input_ids"][-1] == loaded.tokenizer.convert_tokens_to_ids(closing[-1])
    assert own_question(loaded, TEXT, None) == own_question(plain, TEXT, None)
    assert own_question(loaded, TEXT, QUESTION) == own_question(plain, TEXT, QUESTION)
    assert needle_question(loaded, 500) == needle_question(plain, 500)


def test_the_context_ends_where_the_text_does(plain: LoadedModel) -> None:
    asked = own_question(plain, TEXT, QUESTION)
    assert asked.context_tokens is not None
    context = plain.tokenizer.decode(list(asked.input_ids[: asked.context_tokens]))
    assert context == f"{BOS}Text: {TEXT}"


def test_a_rendered_prompt_is_the_prompt_that_chat_makes(chatty: LoadedModel) -> None:
    rendered = chatty.tokenizer.apply_chat_template(
        [{"role": "user", "content": TEXT}], tokenize=False, add_generation_prompt=True
    )
    assert rendered.startswith(BOS)
    found = own_question(chatty, rendered, None)
    assert found.input_ids == own_question(chatty, TEXT, None, chat=True).input_ids
    assert found.input_ids.count(chatty.tokenizer.bos_token_id) == 1


@pytest.mark.parametrize(("question", "chat", "option"), [(QUESTION, False, "--question"), (None, True, "--chat")])
def test_a_rendered_prompt_is_not_put_into_a_template(
    chatty: LoadedModel, question: str | None, chat: bool, option: str
) -> None:
    with pytest.raises(OptionError, match=f"contains '{BOS}', a special token of the tokenizer: leave out {option}"):
        own_question(chatty, f"{BOS}User: {TEXT}\nBot:", question, chat=chat)


def test_a_chat_template_that_fails_under_chat_advises_to_leave_it_out(tmp_path: Path) -> None:
    loaded = load(tmp_path, chat_template="{{ raise_exception('system first') }}")
    with pytest.raises(ModelError, match=r"cannot be rendered \(system first\); leave out --chat"):
        own_question(loaded, TEXT, None, chat=True)
    with pytest.raises(ModelError, match="use --no-chat-template"):
        needle_question(loaded, 500)
    assert needle_question(loaded, 500, chat=False).source.startswith("needle ")


@pytest.mark.parametrize("question", ["", " \n"])
def test_an_empty_question_is_refused(plain: LoadedModel, question: str) -> None:
    with pytest.raises(OptionError, match="the question .* is empty"):
        own_question(plain, TEXT, question)


def test_half_a_character_in_a_question_is_refused(plain: LoadedModel) -> None:
    with pytest.raises(OptionError, match="half of a surrogate pair at character"):
        own_question(plain, TEXT, "Where\udcff?")


def test_an_empty_haystack_is_refused_from_python_too(plain: LoadedModel) -> None:
    with pytest.raises(OptionError, match="haystack is empty"):
        needle_question(plain, 500, haystack="")
    with pytest.raises(OptionError, match="needles is empty"):
        needle_question(plain, 500, needles="")

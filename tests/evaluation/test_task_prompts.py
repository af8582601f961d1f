"""Questions as tokens: cut to the window as LongBench cuts, in the model's template, with the end of the context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headprobe.errors import OptionError, PlanError
from headprobe.evaluation.task import TaskQuestion, TaskSet
from headprobe.evaluation.task_prompts import TaskPrompt, prompts_of
from headprobe.models.loading import load_model
from tests.tiny_models import CHAT_TEMPLATE, WINDOW, build_tiny_model

LINES = [f"{n}: The lamp is beside gate {n * 7}." for n in range(200)]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


def asked(lines: int = 4, **more: Any) -> TaskQuestion:
    given = {
        "id": "t:s/1",
        "context": "\n".join(LINES[:lines]),
        "answers": ("7",),
        "head": "Read.\n",
        "tail": "\nWhere?",
    }
    return TaskQuestion(**{**given, **more})


def prompt(llama: Any, question: TaskQuestion, new_tokens: int = 16, **more: Any) -> TaskPrompt:
    about = {key: more.pop(key) for key in ("chat", "cut", "first_line") if key in more}
    (made,) = prompts_of(llama, [TaskSet("t:s", "qa_f1", new_tokens, lambda _: [question], **about)], **more)
    return made


def text_of(llama: Any, made: TaskPrompt) -> str:
    return str(llama.tokenizer.decode(made.input_ids, skip_special_tokens=True))


def test_what_fits_is_left_whole(llama: Any) -> None:
    made = prompt(llama, asked())
    assert text_of(llama, made) == asked().text
    assert list(made.input_ids) == llama.tokenizer(asked().text).input_ids
    assert (made.cut_tokens, made.cluster, made.max_new_tokens) == (0, "t:s/1", 16)


def test_the_middle_is_left_out_as_longbench_leaves_it_out(llama: Any) -> None:
    """Its code: more than `m` tokens become the text of the first `m // 2` and that of the last `m // 2`."""
    question = asked(200)
    made = prompt(llama, question)
    room = WINDOW - 16
    alone = llama.tokenizer(question.text, add_special_tokens=False).input_ids
    assert len(made.input_ids) <= room
    assert len(made.input_ids) >= room - 4
    for half in range(room // 2, room // 2 - 6, -1):
        theirs = llama.tokenizer.decode(alone[:half]) + llama.tokenizer.decode(alone[-half:])
        if theirs == text_of(llama, made):
            break
    else:
        pytest.fail("no two halves of equal length give the prompt")
    assert made.cut_tokens == len(llama.tokenizer(question.text).input_ids) - len(made.input_ids)


def test_the_left_is_left_out_or_the_prompt_refused(llama: Any) -> None:
    made = prompt(llama, asked(200), cut="left")
    assert asked(200).text.endswith(text_of(llama, made))
    assert WINDOW - 16 - 4 <= len(made.input_ids) <= WINDOW - 16
    with pytest.raises(PlanError, match=r"t:s/1 has \d+ tokens, 1008 fit beside its answer; --cut middle cuts it"):
        prompt(llama, asked(200), cut="refuse")
    assert prompt(llama, asked(4), cut="refuse").cut_tokens == 0


@pytest.mark.parametrize("lines", [4, 200])
@pytest.mark.parametrize("cut", ["middle", "left"])
def test_the_context_ends_before_the_words_behind_it(llama: Any, lines: int, cut: str) -> None:
    made = prompt(llama, asked(lines), cut=cut)
    assert made.context_tokens is not None
    read, later = made.input_ids[: made.context_tokens], made.input_ids[made.context_tokens :]
    assert llama.tokenizer.decode(read, skip_special_tokens=True).endswith(LINES[lines - 1])
    assert str(llama.tokenizer.decode(later)).endswith("Where?")
    assert len(later) < 20


def test_a_prompt_without_a_context_has_no_end_of_it(llama: Any) -> None:
    assert prompt(llama, asked(context="", head="Where is it?")).context_tokens is None


def test_a_chat_template_stands_around_the_text_and_the_lead_behind_it(tmp_path: Path) -> None:
    chat = load_model(str(build_tiny_model("llama", tmp_path, chat_template=CHAT_TEMPLATE)), device="cpu")
    question = asked(lead="It is")
    whole = f"[user] {question.text}\n[assistant] It is"
    for lines in (4, 200):
        made = prompt(chat, asked(lines, lead="It is"))
        shown = text_of(chat, made)
        assert shown.startswith("[user] Read.\n0: The lamp")
        assert shown.endswith("Where?\n[assistant] It is")
        assert made.context_tokens is not None
        assert list(made.input_ids).count(chat.tokenizer.bos_token_id) == 1
    assert text_of(chat, prompt(chat, question)) == whole
    assert text_of(chat, prompt(chat, question, chat=False)) == f"{question.text} It is"
    (plain,) = prompts_of(chat, [TaskSet("t:s", "qa_f1", 4, lambda _: [question])], chat=False)
    assert text_of(chat, plain) == f"{question.text} It is"


def test_sets_take_turns(llama: Any) -> None:
    sets = [
        TaskSet(f"t:{name}", "qa_f1", 4, lambda _, name=name, n=n: [asked(id=f"{name}{i}") for i in range(n)])
        for name, n in (("a", 3), ("b", 1))
    ]
    assert [each.trial_id for each in prompts_of(llama, sets)] == ["a0", "b0", "a1", "a2"]
    assert [each.trial_id for each in prompts_of(llama, sets, limit=1)] == ["a0", "b0"]


def test_a_questions_own_metric_and_length_go_before_the_sets(llama: Any) -> None:
    made = prompt(llama, asked(metric="string_match_all", max_new_tokens=5))
    assert (made.metric, made.max_new_tokens) == ("string_match_all", 5)
    assert prompt(llama, asked(max_new_tokens=5), max_new_tokens=9).max_new_tokens == 9


def test_only_the_first_line_counts_where_the_set_says_so(llama: Any) -> None:
    made = prompt(llama, asked(), first_line=True)
    assert made.score("\n\n7\nQuestion: more") == 1.0
    assert prompt(llama, asked()).score("7\nQuestion: more") == pytest.approx(0.5)


def test_text_that_reads_as_a_special_token_is_noted(llama: Any) -> None:
    assert prompt(llama, asked(context="a </s> b")).special == "</s>"
    assert prompt(llama, asked()).special is None


def test_what_can_never_fit_is_refused(llama: Any) -> None:
    with pytest.raises(OptionError, match=r"t:s/1 wants 1024 new tokens, the model's window has 1024: --max-new"):
        prompt(llama, asked(), new_tokens=1024)
    with pytest.raises(OptionError, match="--cut is 'top', need one of middle, left, refuse"):
        prompts_of(llama, [], cut="top")
    ids = asked(context="", input_ids=tuple(range(3, 1024)))
    with pytest.raises(PlanError, match="t:s/1 has 1021 tokens, 1008 fit beside its answer"):
        prompt(llama, ids)


def test_a_question_without_an_answer_is_no_question() -> None:
    with pytest.raises(ValueError, match="there is no answer"):
        asked(answers=(" ",))

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from headprobe.errors import ModelError, PlanError
from headprobe.probes.encoding import resolve_template
from headprobe.probes.haystack import Haystack, load_haystack
from headprobe.probes.needle import Needle, NeedleSet, load_needles
from headprobe.probes.plan import ProbePlan, TrialSpec
from headprobe.probes.prompt import Prompt, PromptBuilder, duplicate_prompts, prompt_record
from headprobe.probes.scripts import sentence_ends
from headprobe.spans import Span
from tests.toy_tokenizers import BOS, toy_tokenizer

LENGTHS = (200, 333, 512, 900)
DEPTHS = (0, 10, 37.5, 50, 90, 100)
Built = list[tuple[TrialSpec, Prompt]]


def plan_for(essays: Haystack, **changes: Any) -> ProbePlan:
    options: dict[str, Any] = {"needles": load_needles("reasoning"), "lengths": LENGTHS, "depths": DEPTHS}
    return ProbePlan.build(**{"haystack": essays, **options, **changes})


def build(tokenizer: PreTrainedTokenizerFast, essays: Haystack, **changes: Any) -> Built:
    plan = plan_for(essays, **changes)
    builder = PromptBuilder(tokenizer, essays, plan)
    made = [(spec, builder.build(spec)) for spec in plan.trials()]
    assert made, "without a prompt no test would test anything"
    return made


@pytest.fixture
def built(tokenizer: PreTrainedTokenizerFast, essays: Haystack) -> Built:
    return build(tokenizer, essays)


def context_of(tokenizer: PreTrainedTokenizerFast, prompt: Prompt, needle: Needle) -> str:
    """What the prompt's template was filled with."""
    template = resolve_template(tokenizer)
    end = f"{template.middle}{needle.question}{template.tail}"
    assert prompt.text.startswith(template.head)
    assert prompt.text.endswith(end)
    return prompt.text[len(template.head) : -len(end)]


def without_needle(context: str, needle: Needle) -> tuple[str, str]:
    """The background before and behind the needle."""
    before, after = context.split(needle.text)
    return before, after


def decode(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids)))


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", text).lower()


def test_spans_decode_to_what_they_name(tokenizer: PreTrainedTokenizerFast, built: Built) -> None:
    for spec, prompt in built:
        needle = spec.needle
        named = [(prompt.answer_span, needle.answer), (prompt.question_span, needle.question)]
        named += [(prompt.needle_span, needle.text), (prompt.distractor_span or Span(0, 0), needle.distractor or "")]
        for span, text in named:
            decoded = squeezed(decode(tokenizer, prompt.input_ids[span.start : span.end]))
            assert squeezed(text) in decoded
            assert len(decoded) <= len(squeezed(text)) + 16


def test_spans_are_as_short_as_the_tokens_allow(tokenizer: PreTrainedTokenizerFast, built: Built) -> None:
    for spec, prompt in built:
        for span, text in ((prompt.answer_span, spec.needle.answer), (prompt.question_span, spec.needle.question)):
            for a, b in ((span.start + 1, span.end), (span.start, span.end - 1)):
                assert squeezed(text) not in squeezed(decode(tokenizer, prompt.input_ids[a:b]))


def test_byte_level_spans_decode_to_the_very_sentence(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    for spec, prompt in build(byte_bpe, essays):
        ids = list(prompt.input_ids[prompt.answer_span.start : prompt.answer_span.end])
        assert decode(byte_bpe, ids) in (f" {spec.needle.answer}", spec.needle.answer)  # or the space is a token apart
        assert decode(byte_bpe, prompt.answer_ids) == f" {spec.needle.answer}"


def test_the_spans_lie_in_order_inside_each_other(built: Built) -> None:
    for _, prompt in built:
        inner = [prompt.answer_span, prompt.distractor_span or Span(0, 0)]
        assert all(prompt.needle_span.start < s.start and s.end <= prompt.needle_span.end for s in inner)
        assert prompt.needle_span.end <= prompt.question_span.start
        assert prompt.question_span.end <= len(prompt.input_ids)


def test_input_ids_are_the_tokenization_of_the_whole_text(tokenizer: PreTrainedTokenizerFast, built: Built) -> None:
    chat = tokenizer.chat_template is not None
    for _, prompt in built:
        whole = tokenizer(prompt.text, add_special_tokens=not chat, verbose=False)["input_ids"]
        closing = {tokenizer.convert_tokens_to_ids(name) for name in ("[SEP]", "</s>")}
        assert list(prompt.input_ids) == (whole[:-1] if whole[-1] in closing else whole)


def test_the_length_is_never_passed_and_nearly_reached(built: Built) -> None:
    for spec, prompt in built:
        used = len(prompt.input_ids) + len(prompt.answer_ids) + 1
        assert 0.95 * spec.length - 6 <= used <= spec.length, spec.id


def test_no_further_sentence_would_have_fitted(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    ends = [0, *sentence_ends(essays.text)]
    following = dict(pairwise(ends))
    for spec, prompt in build(byte_bpe, essays):
        context = context_of(byte_bpe, prompt, spec.needle)
        before, after = without_needle(context, spec.needle)
        background = (before.removesuffix(" ") + after) if before else after[1:]
        assert essays.text.startswith(background)
        end = max(e for e in ends if e <= len(background))
        longer = prompt.text.replace(context, context + essays.text[len(background) : following[end]])
        assert len(byte_bpe(longer)["input_ids"]) + len(prompt.answer_ids) + 1 > spec.length


def test_the_background_ends_with_a_sentence_unless_the_gap_were_wide(
    byte_bpe: PreTrainedTokenizerFast, essays: Haystack
) -> None:
    seen = set()
    for spec, prompt in build(byte_bpe, essays, lengths=(150, 200, 333, 900, 2000)):
        context = context_of(byte_bpe, prompt, spec.needle)
        whole = context.endswith((".", "!", "?", '"'))
        used = len(prompt.input_ids) + len(prompt.answer_ids) + 1
        assert not whole or spec.length - used <= 0.05 * spec.length
        assert context[-1] == context.rstrip()[-1]
        assert whole or essays.text[len(context) - len(spec.needle.text) - 1].isspace()
        seen.add(whole)
    assert seen == {True, False}


def test_the_needle_stands_behind_a_sentence_end_with_one_space_before(
    tokenizer: PreTrainedTokenizerFast, essays: Haystack, built: Built
) -> None:
    ends = set(sentence_ends(essays.text))
    for spec, prompt in built:
        before, after = without_needle(context_of(tokenizer, prompt, spec.needle), spec.needle)
        if before:
            assert before[-1] == " "
            assert len(before) - 1 in ends
            assert essays.text.startswith(before[:-1])
            assert after == "" or after[0] == " " or after.startswith("\n\n")
        else:
            assert after[0] == " "
            assert essays.text.startswith(after[1:])


def test_depth_is_the_share_of_background_before_the_needle(
    tokenizer: PreTrainedTokenizerFast, essays: Haystack, built: Built
) -> None:
    def num_tokens(text: str) -> int:
        return len(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    ends = [0, *sentence_ends(essays.text[:8000])]
    longest = max(num_tokens(essays.text[a:b]) for a, b in pairwise(ends))
    for spec, prompt in built:
        before, after = without_needle(context_of(tokenizer, prompt, spec.needle), spec.needle)
        total = num_tokens(before + after)
        most = longest if spec.depth == 100 else longest / 2 + 3  # a cut sentence may come behind the last place
        assert abs(num_tokens(before) - spec.depth / 100 * total) <= most


def test_depth_0_comes_first_and_depth_100_behind_the_last_sentence(
    tokenizer: PreTrainedTokenizerFast, built: Built
) -> None:
    for spec, prompt in built:
        before, after = without_needle(context_of(tokenizer, prompt, spec.needle), spec.needle)
        if spec.depth == 0:
            assert before == ""
        if spec.depth == 100:
            assert len(sentence_ends(after)) <= 1
            assert not after.endswith((".", "?", "!"))


def test_prompts_share_their_ids_up_to_the_needle(built: Built) -> None:
    for _, first in built[::3]:
        for _, second in built[::5]:
            shared = min(first.needle_span.start, second.needle_span.start) - 1
            assert first.input_ids[: max(0, shared)] == second.input_ids[: max(0, shared)]


def test_answer_ids_continue_the_prompt(tokenizer: PreTrainedTokenizerFast, built: Built) -> None:
    chat = tokenizer.chat_template is not None
    for spec, prompt in built:
        answer = spec.needle.answer if chat else f" {spec.needle.answer}"
        whole = tokenizer(prompt.text + answer, add_special_tokens=not chat, verbose=False)["input_ids"]
        expected = whole[len(prompt.input_ids) :]
        if tuple(whole[: len(prompt.input_ids)]) != prompt.input_ids:  # the answer merges with the prompt's end
            expected = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert list(prompt.answer_ids) == expected[: len(prompt.answer_ids)]
        assert len(expected) - len(prompt.answer_ids) in (0, 1)  # a closing special token is no part of the answer
        assert squeezed(decode(tokenizer, prompt.answer_ids)) == squeezed(spec.needle.answer)


def test_the_toy_tokenizers_show_both_ways_of_continuing(essays: Haystack) -> None:
    def merges(kind: str) -> set[bool]:
        tokenizer = toy_tokenizer(kind)
        return {
            tuple(tokenizer(f"{p.text} {s.needle.answer}")["input_ids"][: len(p.input_ids)]) != p.input_ids
            for s, p in build(tokenizer, essays, lengths=(333,))
        }

    assert merges("byte-bpe") == {False}
    assert True in merges("spanning")


def test_a_begin_token_stands_first_and_only_once() -> None:
    essays = load_haystack("essays")
    for kind in ("byte-bpe", "chat"):
        tokenizer = toy_tokenizer(kind)
        begin = tokenizer.convert_tokens_to_ids(BOS)
        for _, prompt in build(tokenizer, essays, lengths=(300,)):
            assert prompt.input_ids[0] == begin
            assert prompt.input_ids.count(begin) == 1


def test_a_chat_prompt_ends_where_the_assistant_begins(essays: Haystack) -> None:
    tokenizer = toy_tokenizer("chat")
    for spec, prompt in build(tokenizer, essays, lengths=(300,)):
        assert prompt.text.startswith("<|begin|><|user|>\n")
        ending = "Answer with the full sentence from the text.<|end|>\n<|assistant|>\n"
        assert prompt.text.endswith(f"\n\nQuestion: {spec.needle.question}\n{ending}")
        assert decode(tokenizer, prompt.answer_ids) == spec.needle.answer


def test_the_chat_template_is_left_out_when_the_plan_says_so(essays: Haystack) -> None:
    (_, prompt), *_ = build(toy_tokenizer("chat"), essays, lengths=(300,), chat=False)
    assert prompt.text.startswith("Text: ")
    assert prompt.text.endswith("\nAnswer:")


def test_the_seed_lets_the_background_begin_elsewhere(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    (spec, prompt), *_ = build(byte_bpe, essays, lengths=(300,), depths=(100,), seed=3)
    assert context_of(byte_bpe, prompt, spec.needle).startswith(essays.rotated(3).paragraphs[0][:200])
    assert essays.rotated(3).paragraphs[0] != essays.paragraphs[0]


def test_repeats_tell_how_often_the_haystack_was_used(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    small = Haystack("small", essays.sha256, essays.paragraphs[:2])
    for spec, prompt in build(byte_bpe, small, lengths=(200, 3000)):
        context = context_of(byte_bpe, prompt, spec.needle)
        used = len(context) - len(spec.needle.text) - 1
        assert prompt.haystack_repeats == pytest.approx(used / len(small.text))
        assert (prompt.haystack_repeats > 1) == (spec.length == 3000)


def test_a_length_that_holds_the_needle_only_has_no_background(
    byte_bpe: PreTrainedTokenizerFast, essays: Haystack, make_needle: Callable[..., Needle]
) -> None:
    needles = NeedleSet("mine", "", (make_needle(),))
    template = resolve_template(byte_bpe)
    alone = template.render(needles.needles[0].text, needles.needles[0].question)
    fixed = len(byte_bpe(alone)["input_ids"]) + len(
        byte_bpe(" Ada keeps a red hen.")["input_ids"]
    )  # and one begin token
    (_, prompt), *_ = build(byte_bpe, essays, needles=needles, lengths=(fixed,), depths=(50,))
    assert prompt.text == alone
    assert prompt.haystack_repeats == 0
    with pytest.raises(PlanError, match=f"length {fixed - 1} is too small for needle 'n1': .* it takes {fixed} tokens"):
        build(byte_bpe, essays, needles=needles, lengths=(fixed - 1,), depths=(50,))


def test_every_length_from_the_smallest_up_is_kept(
    tokenizer: PreTrainedTokenizerFast, essays: Haystack, make_needle: Callable[..., Needle]
) -> None:
    needles = NeedleSet("mine", "", tuple(load_needles("retrieval").needles[:2]))
    for spec, prompt in build(tokenizer, essays, needles=needles, lengths=tuple(range(130, 190)), depths=(40,)):
        used = len(prompt.input_ids) + len(prompt.answer_ids) + 1
        assert 0.9 * spec.length <= used <= spec.length


def test_depths_that_meet_in_one_place_are_reported(
    byte_bpe: PreTrainedTokenizerFast, essays: Haystack, make_needle: Callable[..., Needle]
) -> None:
    needles = NeedleSet("mine", "", (make_needle(),))
    prompts = [p for _, p in build(byte_bpe, essays, needles=needles, lengths=(120,), depths=(0, 1, 2, 100))]
    assert duplicate_prompts(prompts) == [("n1@120@0", "n1@120@1", "n1@120@2")]
    assert duplicate_prompts(prompts[2:]) == []


def test_shipped_grids_have_no_duplicates(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    built = build(byte_bpe, essays, lengths=(512, 1024), depths=tuple(100 * i / 9 for i in range(10)))
    assert duplicate_prompts(prompt for _, prompt in built) == []


def test_random_needles_and_haystacks_keep_their_spans(tokenizer: PreTrainedTokenizerFast) -> None:
    random.seed(5)
    known = "Ada keeps the red hen, Why? sea's “old” boat in two days... No. one and on; Dr. Moon sat. They'll.".split()
    unknown = tokenizer.unk_token_id
    known = [word for word in known if unknown is None or unknown not in tokenizer(f"a {word} a")["input_ids"]]

    def text(low: int, high: int) -> str:
        return " ".join(random.choices(known, k=random.randint(low, high)))

    assert len(known) > 10
    for _ in range(30):
        haystack = Haystack("random", "", tuple(text(1, 30) for _ in range(random.randint(1, 6))))
        facts = (f"{text(1, 4)} one.", f"{text(1, 4)} two.")
        needle = Needle("n", "reasoning", "any", facts, facts[0], text(2, 5), facts[1])
        needles = NeedleSet("mine", "", (needle,))
        for spec, prompt in build(tokenizer, haystack, needles=needles, lengths=(128, 300), depths=(0, 30, 100)):
            span = prompt.answer_span
            assert squeezed(facts[0]) in squeezed(decode(tokenizer, prompt.input_ids[span.start : span.end]))
            assert len(prompt.input_ids) + len(prompt.answer_ids) + 1 <= spec.length


def test_letters_of_several_bytes_keep_exact_spans(byte_bpe: PreTrainedTokenizerFast) -> None:
    haystack = Haystack("mixed", "", ("Ünïcode wäre schön. 她来了。他走了！ Ça va? Oui. 🙂 Ja.",) * 3)
    facts = ("Émile hält 3 Igel 🦔.", "Øyvind hält Käse.")
    needle = Needle("n", "retrieval", "habit", facts, facts[0], "Was hält Émile?", facts[1])
    for _, prompt in build(
        byte_bpe, haystack, needles=NeedleSet("m", "", (needle,)), lengths=(400,), depths=(0, 33, 66)
    ):
        span = prompt.answer_span
        assert decode(byte_bpe, prompt.input_ids[span.start : span.end]).strip() == facts[0]


def test_a_needle_behind_a_stop_without_space_is_set_off_by_spaces(byte_bpe: PreTrainedTokenizerFast) -> None:
    haystack = Haystack("chinese", "", ("她来了。" * 60,))
    needle = Needle("n", "retrieval", "habit", ("Ada sings.",), "Ada sings.", "What?")
    (_, prompt), *_ = build(byte_bpe, haystack, needles=NeedleSet("m", "", (needle,)), lengths=(200,), depths=(50,))
    assert "她来了。 Ada sings. 她来了。" in prompt.text


def test_a_tokenizer_that_cannot_spell_the_needle_is_refused(
    essays: Haystack, make_needle: Callable[..., Needle]
) -> None:
    facts = ("Qwxyz keeps a zzyzx.",)
    needle = make_needle(facts=facts, answer=facts[0], distractor=None)
    with pytest.raises(PlanError, match=r"the tokenizer cannot spell 'Qwxyz keeps a zzyzx\.': its tokens decode to"):
        build(toy_tokenizer("words"), essays, needles=NeedleSet("mine", "", (needle,)), lengths=(200,))


@pytest.mark.parametrize(
    ("fact", "question", "missing"),
    [("Маша поёт", "What", " Маша поёт"), ("Ada keeps a hen.", "Кто поёт", "Кто поёт")],
)
def test_a_tokenizer_that_drops_letters_is_refused(essays: Haystack, fact: str, question: str, missing: str) -> None:
    raw = Tokenizer(models.BPE())  # without an unknown token it is silent about unknown letters
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.train_from_iterator(essays.paragraphs, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    needles = NeedleSet("mine", "", (Needle("n", "retrieval", "habit", (fact,), fact, question),))
    with pytest.raises(PlanError, match=re.escape(f"the tokenizer makes no token of '{missing}'")):
        build(PreTrainedTokenizerFast(tokenizer_object=raw), essays, needles=needles)


def test_special_tokens_in_the_text_are_refused(
    byte_bpe: PreTrainedTokenizerFast, essays: Haystack, make_needle: Callable[..., Needle]
) -> None:
    with pytest.raises(PlanError, match=r"haystack 'bad' contains '<\|end\|>', which is a special token"):
        build(byte_bpe, Haystack("bad", "", ("It ends <|end|> here.",)))
    facts = ("Ada keeps <|begin|>.",)
    needle = make_needle(facts=facts, answer=facts[0], distractor=None)
    with pytest.raises(PlanError, match=r"needle 'n1' contains '<\|begin\|>'"):
        build(byte_bpe, essays, needles=NeedleSet("mine", "", (needle,)))


def test_another_haystack_than_the_plans_is_refused(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    with pytest.raises(PlanError, match="the plan is for haystack 'essays', not for this 'stories'"):
        PromptBuilder(byte_bpe, load_haystack("stories"), plan_for(essays))


def test_a_tokenizer_without_offsets_is_refused(essays: Haystack) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match="Slow is not a fast tokenizer"):
        PromptBuilder(Slow(), essays, plan_for(essays))


def test_the_record_of_a_prompt_is_plain_json(built: Built) -> None:
    spec, prompt = built[0]
    record = prompt_record(prompt)
    assert json.loads(json.dumps(record)) == record
    assert list(record) == [
        "trial",
        "input_ids",
        "answer_span",
        "distractor_span",
        "answer_ids",
        "depth_reached",
        "text",
    ]
    assert record["trial"] == spec.id
    assert record["answer_span"] == [prompt.answer_span.start, prompt.answer_span.end]
    assert record["input_ids"] == list(prompt.input_ids)


def test_the_record_without_distractor_says_null(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    needle = next(n for n in load_needles("retrieval").needles if n.distractor is None)
    (_, prompt), *_ = build(byte_bpe, essays, needles=NeedleSet("one", "", (needle,)))
    assert prompt_record(prompt)["distractor_span"] is None


def test_the_same_plan_gives_the_same_prompts(
    built: Built, tokenizer: PreTrainedTokenizerFast, essays: Haystack
) -> None:
    assert build(tokenizer, essays) == built


def test_a_hundred_prompts_of_2k_tokens_take_seconds(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    begin = time.process_time()
    prompts = build(byte_bpe, essays, lengths=(2048,), depths=tuple(range(0, 100, 2)))
    assert len(prompts) == 100
    assert time.process_time() - begin < 20


def test_nothing_is_printed_or_warned_about_long_texts(
    essays: Haystack, capfd: pytest.CaptureFixture[str], byte_bpe: PreTrainedTokenizerFast
) -> None:
    build(byte_bpe, essays, lengths=(1500,), depths=(50,))
    assert capfd.readouterr() == ("", "")


# -- other scripts --------------------------------------------------------------------------------------------------

HINDI = "नदी के पास एक पुराना गाँव है। वहाँ के लोग सुबह जल्दी उठते हैं। शाम को सब मिलकर गाते हैं। "
URDU = "یہ ایک پرانا گاؤں ہے۔ لوگ صبح اٹھتے ہیں۔ "
THAI = "เมืองเล็กตั้งอยู่ริมแม่น้ำและเงียบสงบในตอนเย็น ผู้คนตื่นแต่เช้าและกวาดถนนหน้าบ้านของตน "
HAYSTACKS = {"hi": HINDI * 80, "ur": URDU * 60, "th": THAI * 60, "th-": THAI.replace(" ", "") * 60}
FACTS = {"hi": "रवि बाँसुरी बजाता है।", "ur": "علی کتاب پڑھتا ہے۔", "th": "มีนาชอบสะสมหินสีแดง", "th-": "มีนาชอบสะสมหินสีแดง"}


@pytest.mark.parametrize("language", HAYSTACKS)
def test_depths_spread_over_a_haystack_of_any_script(byte_bpe: PreTrainedTokenizerFast, language: str) -> None:
    fact = FACTS[language]
    needles = NeedleSet("one", "", (Needle("n", "retrieval", "habit", (fact,), fact, "?", language=language),))
    haystack = Haystack(language, "", (HAYSTACKS[language].strip(),))
    built = build(byte_bpe, haystack, needles=needles, lengths=(1500,), depths=(0, 25, 50, 75, 100))
    assert duplicate_prompts([prompt for _, prompt in built]) == []
    for spec, prompt in built:
        assert prompt.depth_reached == pytest.approx(spec.depth, abs=6)
        before, after = without_needle(context_of(byte_bpe, prompt, spec.needle), spec.needle)
        shares = [len(byte_bpe(text, add_special_tokens=False)["input_ids"]) for text in (before, after)]
        assert prompt.depth_reached == pytest.approx(100 * shares[0] / sum(shares), abs=1.5)
        assert 0.94 * 1500 <= len(prompt.input_ids) + len(prompt.answer_ids) + 1 <= 1500


def test_the_depth_reached_stands_in_the_record(built: Built) -> None:
    for spec, prompt in built:
        reached = prompt_record(prompt)["depth_reached"]
        assert reached == prompt.depth_reached
        assert spec.depth != 0 or reached == 0.0
        assert 0 <= reached <= 100


def test_without_background_no_depth_is_reached(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    needle = load_needles("retrieval").needles[0]
    plan = plan_for(essays, needles=NeedleSet("one", "", (needle,)), lengths=(200,), depths=(50,))
    builder = PromptBuilder(byte_bpe, essays, plan)
    smallest = next(n for n in range(20, 200) if fits(builder, TrialSpec("t", needle, n, 50.0)))
    prompt = builder.build(TrialSpec("t", needle, smallest, 50.0))
    assert prompt.depth_reached is None
    assert prompt_record(prompt)["depth_reached"] is None


def fits(builder: PromptBuilder, spec: TrialSpec) -> bool:
    try:
        builder.build(spec)
    except PlanError:
        return False
    return True

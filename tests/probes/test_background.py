from __future__ import annotations

import random
import time

import pytest
from transformers import PreTrainedTokenizerFast

from headprobe.errors import PlanError
from headprobe.probes.haystack import Haystack
from headprobe.probes.prompt import Background
from headprobe.probes.scripts import may_cut, sentence_ends


def num_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_it_holds_enough_tokens_and_repeats_the_haystack_when_needed(
    tokenizer: PreTrainedTokenizerFast, essays: Haystack
) -> None:
    small = Haystack("small", "", essays.paragraphs[:2])
    for wanted in (1, 100, 2000):
        background = Background(tokenizer, small, wanted)
        assert num_tokens(tokenizer, background.text) >= wanted
        assert background.text == small.stretch(len(background.text))[0]
    assert background.repeats(len(background.text)) > 1
    assert background.repeats(len(small.text)) == 1.0


def test_token_counts_are_nearly_those_of_the_text_alone(tokenizer: PreTrainedTokenizerFast, essays: Haystack) -> None:
    background = Background(tokenizer, essays, 1500)
    for end in background.ends[::9]:
        assert abs(background.tokens_before(end) - num_tokens(tokenizer, background.text[:end])) <= 2


def test_the_fitting_end_is_the_last_one_within_the_tokens(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    background = Background(byte_bpe, essays, 1500)
    random.seed(3)
    for limit in [0, 1, *random.choices(range(1500), k=50)]:
        fitting = [end for end in background.ends if background.tokens_before(end) <= limit]
        assert background.fitting_end(limit) == max(fitting, default=0)


def test_the_insertion_point_is_the_nearest_sentence_end(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    background = Background(byte_bpe, essays, 1500)
    random.seed(4)
    for _ in range(100):
        end = random.choice([0, *background.ends])
        depth = random.choice([0, 100, random.uniform(0, 100)])
        target = depth / 100 * background.tokens_before(end)
        places = [0, *(e for e in sentence_ends(background.text) if e <= end)]
        assert background.insertion_point(end, depth) == min(
            places, key=lambda place: (abs(background.tokens_before(place) - target), place)
        )


def test_words_come_furthest_first_and_are_whole(tokenizer: PreTrainedTokenizerFast, essays: Haystack) -> None:
    background = Background(tokenizer, essays, 600)
    start = background.fitting_end(300)
    words = list(background.words_until(start, 320))
    assert words == sorted(words, reverse=True)
    assert all(start < end for end in words)
    assert all(background.tokens_before(end) <= 320 for end in words)
    assert all(background.text[end].isspace() and not background.text[end - 1].isspace() for end in words)
    following = background.text.index(" ", words[0] + 1)
    assert background.tokens_before(following) > 320


def test_a_tokenizer_that_drops_the_text_is_refused(essays: Haystack) -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    raw = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    raw.normalizer = normalizers.Replace("e", "")
    raw.pre_tokenizer = pre_tokenizers.Split("never", "isolated")
    with pytest.raises(PlanError, match="the tokenizer makes only 1 tokens of"):
        Background(PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]"), essays, 50)


# -- texts without sentence ends ------------------------------------------------------------------------------------

THAI = "เมืองเล็กตั้งอยู่ริมแม่น้ำและเงียบสงบในตอนเย็น ผู้คนตื่นแต่เช้าและกวาดถนนหน้าบ้านของตน "
ENDLESS = {
    "Thai": THAI * 40,
    "Thai without spaces": THAI.replace(" ", "") * 40,
    "Khmer without spaces": "ទីក្រុងតូចមួយស្ថិតនៅមាត់ទន្លេហើយស្ងប់ស្ងាត់នៅពេលល្ងាច" * 60,
    "Chinese without stops": "小镇在河边傍晚很安静人们早起打扫门前的街道" * 100,
    "Burmese": "မြို့ငယ်လေးသည်မြစ်ကမ်းဘေးတွင်ရှိပြီးညနေခင်းတွင်တိတ်ဆိတ်သည် " * 60,
    "a transcript": "so we went down to the river and then she said that nobody had been there since the spring and "
    * 60,
    "Hindi without stops": "नदी के पास एक पुराना गाँव है और वहाँ के लोग सुबह जल्दी उठते हैं " * 60,
}


@pytest.mark.parametrize("text", ENDLESS.values(), ids=ENDLESS.keys())
def test_without_sentence_ends_a_needle_goes_in_near_its_depth(byte_bpe: PreTrainedTokenizerFast, text: str) -> None:
    background = Background(byte_bpe, Haystack("endless", "", (text.strip(),)), 1500)
    end = next(iter([*background.words_until(0, 1400), *background.characters_until(0, 1400)]))
    has_spaces = sum(map(str.isspace, text)) * 12 > len(text)
    for depth in range(0, 101, 5):
        place = background.insertion_point(end, depth)
        reached = background.depth_at(place, end)
        assert reached == pytest.approx(depth, abs=2.5)
        assert may_cut(background.text, place)
        if has_spaces and place not in (0, end):
            assert background.text[place].isspace()


def test_a_sentence_end_is_taken_where_there_is_one(byte_bpe: PreTrainedTokenizerFast) -> None:
    sentence = "小镇在河边，傍晚很安静，人们早起打扫门前的街道。"
    background = Background(byte_bpe, Haystack("zh", "", (sentence * 50,)), 1500)
    end = background.fitting_end(1400)
    places = {background.insertion_point(end, depth) for depth in range(101)}
    assert all(place % len(sentence) == 0 for place in places)
    assert len(places) > 10


def test_a_long_heading_or_sentence_of_english_is_not_cut(byte_bpe: PreTrainedTokenizerFast) -> None:
    heading = "On the many ways in which a lamp may be lit, and put out"  # 56 characters, no stop
    sentence = "It rained, " + "and rained, " * 30 + "and stopped."
    background = Background(byte_bpe, Haystack("en", "", (heading, sentence) * 8), 1500)
    ends = {0, *background.ends}
    assert {background.insertion_point(background.ends[-1], depth) for depth in range(101)} <= ends


def test_the_depth_reached_is_the_share_of_tokens_before(byte_bpe: PreTrainedTokenizerFast, essays: Haystack) -> None:
    background = Background(byte_bpe, essays, 600)
    end = background.fitting_end(500)
    assert background.depth_at(0, end) == 0.0
    assert background.depth_at(end, end) == 100.0
    place = background.ends[3]
    share = num_tokens(byte_bpe, background.text[:place]) / num_tokens(byte_bpe, background.text[:end])
    assert background.depth_at(place, end) == pytest.approx(100 * share, abs=0.5)
    assert background.depth_at(0, 0) is None


@pytest.mark.parametrize("piece", ["The cat sat on the mat. ", "เมืองเล็กตั้งอยู่ริมแม่น้ำ", "x"])
def test_of_ten_megabytes_no_more_is_tokenized_than_is_needed(byte_bpe: PreTrainedTokenizerFast, piece: str) -> None:
    seen: list[int] = []

    class Counting:
        def __call__(self, text: str, **options: object) -> object:
            seen.append(len(text))
            return byte_bpe(text, **options)

    haystack = Haystack("long", "", ((piece * (10_000_000 // len(piece))).strip(),))
    begin = time.process_time()
    background = Background(Counting(), haystack, 256)
    assert sum(seen) < 20_000
    assert len(background.text) < 20_000
    assert background.insertion_point(background.fitting_end(200), 50) in (0, *background.ends)
    assert time.process_time() - begin < 5


def test_a_long_paragraph_gives_the_prompts_that_its_beginning_gives(byte_bpe: PreTrainedTokenizerFast) -> None:
    sentence = "The lamp was lit by number {} of the keepers. "
    long, short = ("".join(sentence.format(n) for n in range(count)).strip() for count in (20_000, 200))
    cut, whole = (Background(byte_bpe, Haystack("h", "", (text,)), 500) for text in (long, short))
    assert len(cut.text) < len(long) / 10
    assert cut.fitting_end(450) == whole.fitting_end(450)
    for depth in range(0, 101, 10):
        assert cut.insertion_point(cut.fitting_end(450), depth) == whole.insertion_point(whole.fitting_end(450), depth)

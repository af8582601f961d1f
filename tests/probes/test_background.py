from __future__ import annotations

import random

import pytest
from transformers import PreTrainedTokenizerFast

from headprobe.errors import PlanError
from headprobe.probes.background import Background
from headprobe.probes.haystack import Haystack
from headprobe.probes.sentences import sentence_ends


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

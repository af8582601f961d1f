"""Texts that are read twice: exact copies of random tokens, and passages whose second copy is found again."""

from __future__ import annotations

from typing import Any

import pytest

from headprobe.errors import OptionError, PlanError
from headprobe.probes.haystack import load_haystack
from headprobe.probes.reading import COPIES, PASSAGE, RANDOM, Reading, ReadingBuilder, ReadingPlan
from tests.tiny_models import BOS, CHAT_TEMPLATE, tiny_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny_tokenizer()


def built(tokenizer: Any, kind: str, lengths: tuple[int, ...] = (128, 200), **options: Any) -> list[Reading]:
    haystack = load_haystack("essays") if kind == PASSAGE else None
    named = {} if haystack is None else {"haystack_name": haystack.name, "haystack_sha256": haystack.sha256}
    plan = ReadingPlan(kind, lengths, 3, **named, **options)
    builder = ReadingBuilder(tokenizer, plan, haystack)
    return [builder.build(spec) for spec in plan.trials()]


def test_random_tokens_come_four_times_behind_the_opening_token(tokenizer: Any) -> None:
    for reading in built(tokenizer, RANDOM):
        first, again = reading.first_span, reading.again_span
        copy = reading.input_ids[first.start : first.end]
        assert tokenizer.convert_ids_to_tokens(list(reading.input_ids[: first.start])) == [BOS]
        assert reading.input_ids[first.start :] == copy * COPIES
        assert (again.start, again.end) == (first.end, len(reading.input_ids))
        assert len(set(copy)) == len(copy)


def test_random_tokens_fill_the_length_and_hold_no_special_token(tokenizer: Any) -> None:
    for reading in built(tokenizer, RANDOM):
        length = int(reading.trial_id.partition("@")[2])
        assert length - COPIES < len(reading.input_ids) <= length
        assert not set(reading.input_ids[1:]) & set(tokenizer.all_special_ids)


def test_random_tokens_are_those_that_the_model_knows(tokenizer: Any) -> None:
    plan = ReadingPlan(RANDOM, (400,), 2)
    builder = ReadingBuilder(tokenizer, plan, None, vocabulary=40)
    assert all(max(builder.build(spec).input_ids) < 40 for spec in plan.trials())


def test_texts_differ_by_number_and_seed_and_not_from_run_to_run(tokenizer: Any) -> None:
    one, same, other = built(tokenizer, RANDOM), built(tokenizer, RANDOM), built(tokenizer, RANDOM, seed=1)
    assert [r.input_ids for r in one] == [r.input_ids for r in same]
    assert len({r.input_ids for r in (*one, *other)}) == 12


@pytest.mark.parametrize("chat", [False, True])
def test_a_passage_stands_twice_around_the_request(chat: bool) -> None:
    tokenizer = tiny_tokenizer(CHAT_TEMPLATE)
    for reading in built(tokenizer, PASSAGE, (300,), chat=chat):
        first, again = (
            tokenizer.decode(list(reading.input_ids[span.start : span.end])).strip()
            for span in (reading.first_span, reading.again_span)
        )
        assert first == again
        assert len(first) > 80
        assert reading.text.count(first) == 2
        between = tokenizer.decode(list(reading.input_ids[reading.first_span.end : reading.again_span.start]))
        assert "Repeat the previous context:" in between
        assert ("[assistant]" in between) == chat
        assert 260 < len(reading.input_ids) <= 300
        assert reading.input_ids.count(tokenizer.bos_token_id) == 1


def test_passages_begin_in_different_places(tokenizer: Any) -> None:
    assert len({r.input_ids for r in built(tokenizer, PASSAGE, (300,))}) == 3


def test_a_plan_names_repeated_lengths_and_is_limited_evenly() -> None:
    plan = ReadingPlan(RANDOM, (256, 128, 256), 4)
    assert (plan.lengths, plan.removed, plan.num_trials) == ((128, 256), ("length 256",), 8)
    assert [spec.length for spec in plan.limited(2)] == [128, 256]
    assert plan.digest == ReadingPlan(RANDOM, (128, 256), 4).digest != ReadingPlan(RANDOM, (128,), 4).digest


def test_lengths_that_are_too_small_are_refused(tokenizer: Any) -> None:
    with pytest.raises(PlanError, match="length 16 is too small for 4 copies: need at least 17 tokens"):
        built(tokenizer, RANDOM, (16,))
    with pytest.raises(PlanError, match="length 24 is too small for a text that is read twice"):
        built(tokenizer, PASSAGE, (24,))


def test_lengths_beyond_the_window_and_too_many_trials_are_refused() -> None:
    with pytest.raises(PlanError, match="beyond the model's window of 100 tokens"):
        ReadingPlan(RANDOM, (128,), 2, window=100)
    with pytest.raises(OptionError, match=r"20,000 trials \(lengths x texts\) are too many"):
        ReadingPlan(RANDOM, (128, 129), 10_000)

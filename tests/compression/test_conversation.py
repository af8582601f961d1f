"""Turns of one session: a prompt goes on with the conversation, or is refused with the word that helps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig
from transformers.generation.streamers import BaseStreamer

from headprobe.compression.conversation import Conversation
from headprobe.compression.generation import generate, generate_batch, join
from headprobe.compression.session import compress
from headprobe.errors import OptionError
from headprobe.models.releases import generating_with, with_cache
from tests.compression.test_decoding import small_llama, tokens
from tests.tiny_models import tiny_model

GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


def joined(*parts: torch.Tensor) -> torch.Tensor:
    return torch.cat(parts, 1)


# -- prompts that do not go on --------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["position", "inputs", "input_ids"])
@pytest.mark.parametrize("other", [tokens(20, seed=9), tokens(50, seed=9), tokens(90, seed=9)])
def test_another_prompt_is_refused_with_a_word_about_reset(llama: Any, by: str, other: torch.Tensor) -> None:
    with compress(llama, "snapkv", budget=20) as session:
        session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        given = ((other,), {}) if by == "position" else ((), {by: other})
        with pytest.raises(OptionError, match=r"does not continue the conversation: token 0 is .*; reset\(\) begins"):
            session.generate(*given[0], max_new_tokens=4, **given[1], **GREEDY)
        session.reset()
        after_reset = session.generate(other, max_new_tokens=4, **GREEDY)
    with compress(llama, "snapkv", budget=20) as session:
        assert torch.equal(session.generate(other, max_new_tokens=4, **GREEDY), after_reset)


def test_the_same_prompt_again_is_refused(llama: Any) -> None:
    with compress(llama, "full") as session:
        session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        wanted = r"the prompt's 50 tokens are in the conversation already, which has 54, .*; reset\(\) begins"
        with pytest.raises(OptionError, match=wanted):
            session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        with pytest.raises(OptionError, match="the prompt has 2 sequences, the conversation 1"):
            session.generate(tokens(50).repeat(2, 1), max_new_tokens=4, **GREEDY)
        with pytest.raises(OptionError, match="a later turn needs input_ids"):
            session.generate(max_new_tokens=4, **GREEDY)


@pytest.mark.parametrize("place", [0, 49, 50, 53])
def test_every_token_read_or_produced_must_come_again(llama: Any, place: int) -> None:
    """Also the last one produced (at 53), which the cache has not read."""
    with compress(llama, "full") as session:
        said = session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        other = said.clone()
        other[0, place] = 96 - other[0, place]
        with pytest.raises(OptionError, match=f"token {place} is {other[0, place]}, there it is {said[0, place]}"):
            session.generate(joined(other, tokens(5)), max_new_tokens=4, **GREEDY)
        with pytest.raises(OptionError, match="53 tokens are in the conversation already, which has 54"):
            session.generate(said[:, :53], max_new_tokens=4, **GREEDY)


def test_a_refused_call_leaves_the_conversation_as_it_was(llama: Any) -> None:
    def second_turn(between: Any) -> torch.Tensor:
        with compress(llama, "snapkv", budget=20) as session:
            said = session.generate(tokens(50), max_new_tokens=4, **GREEDY)
            between(session)
            return session.generate(joined(said, tokens(5, seed=3)), max_new_tokens=8, **GREEDY)

    def refused(session: Any) -> None:
        for options in ({"num_beams": 3}, {"use_cache": False}, {"inputs": tokens(9)}, {"attention_mask": [1]}):
            with pytest.raises(OptionError):
                session.generate(**{"inputs": tokens(50), "max_new_tokens": 4, **GREEDY, **options})

    assert torch.equal(second_turn(refused), second_turn(lambda session: None))


def test_what_transformers_refuses_leaves_no_trace(llama: Any) -> None:
    with compress(llama, "snapkv", budget=20) as session:
        with pytest.raises(ValueError, match="typo"):
            session.generate(tokens(50), typo=1, **GREEDY)
        assert session.cache is None
        said = session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        held = session.cache.lengths.tolist()  # type: ignore[union-attr]
        with pytest.raises(ValueError, match="typo"):
            session.generate(joined(said, tokens(5)), typo=1, **GREEDY)
        assert session.cache.lengths.tolist() == held  # type: ignore[union-attr]
        assert session.generate(joined(said, tokens(5)), max_new_tokens=3, **GREEDY).shape[1] == 54 + 5 + 3


@pytest.mark.parametrize("prompt", ["text", [[3, 4]], torch.ones(1, 3), torch.tensor([3, 4]), torch.ones(1, 0).long()])
def test_what_is_no_prompt_is_refused(llama: Any, prompt: Any) -> None:
    with compress(llama, "full") as session, pytest.raises(OptionError, match=r"the prompt (is of type|has shape)"):
        session.generate(prompt)


def test_a_prompt_given_twice_is_refused(llama: Any) -> None:
    with compress(llama, "full") as session, pytest.raises(OptionError, match="given twice"):
        session.generate(tokens(5), input_ids=tokens(5))


# -- prompts that go on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [{}, {"do_sample": True, "top_k": 5}, {"return_dict_in_generate": True}])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-oss"])
def test_three_turns_equal_those_of_an_uncompressed_cache(family: str, first: dict[str, Any]) -> None:
    model = tiny_model(family)
    prompt, more = tokens(40, vocabulary=300), [tokens(7, seed=s, vocabulary=300) for s in (2, 3)]

    def turns(generate: Any) -> torch.Tensor:
        torch.manual_seed(0)
        said = generate(prompt, max_new_tokens=6, **{**GREEDY, **first})
        for new in more:
            said = generate(joined(getattr(said, "sequences", said), new), max_new_tokens=6, **GREEDY)
        return said

    own = DynamicCache(config=model.config)
    wanted = turns(lambda ids, **options: model.generate(ids, **generating_with(own), **options))
    with compress(model, "full") as session:
        assert torch.equal(turns(session.generate), wanted)


def test_without_new_tokens_it_goes_on_where_it_stopped(llama: Any) -> None:
    """The last token produced has not been read yet: there is something to go on with."""
    with compress(llama, "snapkv", budget=20) as session:
        at_once = session.generate(tokens(50), max_new_tokens=10, **GREEDY)
        session.reset()
        said = session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        assert torch.equal(session.generate(said, max_new_tokens=6, **GREEDY), at_once)


def test_copies_of_a_prompt_are_a_batch_that_can_go_on(llama: Any) -> None:
    with compress(llama, "full") as session:
        said = session.generate(tokens(50), num_return_sequences=3, max_new_tokens=4, **{**GREEDY, "do_sample": True})
        assert session.generate(joined(said, tokens(5).repeat(3, 1)), max_new_tokens=2, **GREEDY).shape == (3, 61)
        with pytest.raises(OptionError, match="the prompt has 1 sequences, the conversation 3"):
            session.generate(joined(said[:1], tokens(5)), max_new_tokens=2, **GREEDY)


def test_a_batch_whose_answers_end_early_goes_on(llama: Any) -> None:
    """Tokens that fill up a row behind its end were read as tokens: a mask that says so is right, another refused."""
    rows, mask = padded_rows(30, 44)
    free = llama.generate(rows, attention_mask=mask, max_new_tokens=8, **GREEDY)
    ends = {**GREEDY, "eos_token_id": int(free[0, 44 + 2])}
    own = DynamicCache(config=llama.config)

    def turns(generate: Any) -> torch.Tensor:
        said = generate(rows, attention_mask=mask, max_new_tokens=8, **ends)
        assert (said[0, 44 + 3 :] == 0).all()
        more = joined(said, tokens(5).repeat(2, 1))
        whole = joined(mask, torch.ones(2, more.shape[1] - 44, dtype=torch.long))
        return generate(more, attention_mask=whole, max_new_tokens=5, **GREEDY)

    wanted = turns(lambda ids, **options: llama.generate(ids, **generating_with(own), **options))
    with compress(llama, "full") as session:
        assert torch.equal(turns(session.generate), wanted)
        session.reset()
        said = session.generate(rows, attention_mask=mask, max_new_tokens=8, **ends)
        with pytest.raises(OptionError, match="no pad may follow a token"):
            session.generate(joined(said, tokens(5).repeat(2, 1)), attention_mask=joined(mask, said[:, 44:] != 0,
                             torch.ones(2, 5)).long(), max_new_tokens=5, **GREEDY)  # fmt: skip


# -- pads of later turns --------------------------------------------------------------------------------------------


def padded_rows(short: int, long: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two prompts, the first padded on the left, and their mask."""
    rows = torch.cat([torch.nn.functional.pad(tokens(short), (long - short, 0)), tokens(long, seed=5)])
    return rows, torch.tensor([[0] * (long - short) + [1] * short, [1] * long])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ([[1, 1, 1, 0], [1, 1, 1, 1]], "no pad may follow a token"),
        ([[0, 1, 1, 1], [1, 1, 1, 1]], "no pad may follow a token"),
        ([[1, 1, 1, 1], [0, 0, 1, 1]], "no pad may follow a token"),
        ([[1, 1, 1], [1, 1, 1]], "the attention mask covers 2 x 25 tokens, need 2 x 26"),
    ],
)
def test_pads_in_a_later_turn_are_refused_before_anything_is_read(llama: Any, new: Any, message: str) -> None:
    rows, mask = padded_rows(12, 20)
    more = tokens(8).reshape(2, 4)
    with compress(llama, "snapkv", budget=10) as session:
        said = session.generate(rows, attention_mask=mask, max_new_tokens=2, **GREEDY)
        seen = session.cache.tokens_seen  # type: ignore[union-attr]
        whole = torch.cat([mask, torch.ones(2, 2, dtype=torch.long), torch.tensor(new)], 1)
        with pytest.raises(OptionError, match=message):
            session.generate(joined(said, more), attention_mask=whole, max_new_tokens=2, **GREEDY)
        assert session.cache.tokens_seen == seen  # type: ignore[union-attr]


def test_other_pads_before_the_prompts_are_refused(llama: Any) -> None:
    rows, mask = padded_rows(12, 20)
    with compress(llama, "snapkv", budget=10) as session:
        said = session.generate(rows, attention_mask=mask, max_new_tokens=2, **GREEDY)
        ids = joined(said, tokens(8).reshape(2, 4))
        other = torch.ones_like(ids)
        other[0, :3] = 0
        with pytest.raises(OptionError, match=r"the padding changed from \[8, 0\] to \[3, 0\] tokens"):
            session.generate(ids, attention_mask=other, max_new_tokens=2, **GREEDY)
        with pytest.raises(OptionError, match="began with padded prompts: a later turn needs an attention_mask"):
            session.generate(ids, max_new_tokens=2, **GREEDY)


@pytest.mark.parametrize("place", [20, 23])
def test_pads_that_transformers_guesses_are_refused_too(llama: Any, place: int) -> None:
    """Without a mask it takes pad tokens for pads."""
    with compress(llama, "snapkv", budget=10) as session:
        said = session.generate(tokens(18), max_new_tokens=2, **GREEDY)
        ids = joined(said, tokens(4))
        ids[0, place] = 0
        with pytest.raises(OptionError, match="no pad may follow a token"):
            session.generate(ids, max_new_tokens=2, **GREEDY)
        assert session.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=2, **GREEDY).shape[1] == 26


def test_a_later_turn_of_a_padded_batch_equals_each_alone(llama: Any) -> None:
    rows, mask = padded_rows(12, 20)
    more = tokens(8).reshape(2, 4)
    with compress(llama, "snapkv", budget=10) as session:
        said = session.generate(rows, attention_mask=mask, max_new_tokens=2, **GREEDY)
        whole = joined(mask, torch.ones(2, 6, dtype=torch.long))
        together = session.generate(joined(said, more), attention_mask=whole, max_new_tokens=6, **GREEDY)
        for row, pad in ((0, 8), (1, 0)):
            session.reset()
            session.generate(rows[row : row + 1, pad:], max_new_tokens=2, **GREEDY)
            ids = joined(said[row : row + 1, pad:], more[row : row + 1])
            alone = session.generate(ids, max_new_tokens=6, **GREEDY)
            assert alone[0].tolist() == together[row, pad:].tolist()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.tensor([[1] * 5]), "covers 1 x 5 tokens, need 1 x 26"),
        (torch.tensor([[0, 0] + [1] * 24]), r"the padding changed from \[0\] to \[2\]"),
        (torch.tensor([[1] * 25 + [0]]), "no pad may follow a token"),
        (torch.ones(1, 1, 4, 26), r"has shape \(1, 1, 4, 26\), need \[B, N\]"),
    ],
)
def test_masks_are_heeded_when_the_model_is_called_directly(llama: Any, mask: torch.Tensor, message: str) -> None:
    with compress(llama, "snapkv", budget=10) as session, torch.inference_mode():
        cache = session.new_cache()
        llama(input_ids=tokens(22), **with_cache(llama, cache))
        with pytest.raises(OptionError, match=message):
            llama(input_ids=tokens(4), attention_mask=mask, **with_cache(llama, cache))
        assert cache.tokens_seen == 22
        llama(input_ids=tokens(4), attention_mask=torch.ones(1, 26), **with_cache(llama, cache))
        with pytest.raises(OptionError, match="a pass over 2 sequences on a cache that holds 1"):
            llama(input_ids=tokens(4).repeat(2, 1), **with_cache(llama, cache))


# -- prompts that the session did not get as tokens -----------------------------------------------------------------


def test_embeddings_can_begin_a_conversation_and_not_go_on_with_one(llama: Any) -> None:
    embedded = llama.get_input_embeddings()(tokens(50)).detach()
    with compress(llama, "snapkv", budget=20) as session:
        wanted = session.generate(tokens(50), max_new_tokens=4, **GREEDY)[:, 50:]
        with pytest.raises(OptionError, match=r"a later turn needs input_ids.*reset\(\)"):
            session.generate(inputs_embeds=embedded, max_new_tokens=4, **GREEDY)
        session.reset()
        made = session.generate(inputs_embeds=embedded, max_new_tokens=4, **GREEDY)
        assert torch.equal(made, wanted)
        for _ in range(2):
            with pytest.raises(OptionError, match=r"does not know which 53 tokens the cache has read.*reset\(\)"):
                session.generate(joined(tokens(50), made, tokens(3)), max_new_tokens=4, **GREEDY)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tokens_read_directly_belong_to_the_conversation(llama: Any, mode: Any) -> None:
    """Also when the cache was copied, and when a loop of one's own produced the answer."""
    ids, more = tokens(50), tokens(6, seed=4)
    with compress(llama, "snapkv", budget=20) as session:
        with mode():
            llama(input_ids=ids, **with_cache(llama, session.new_cache()))
        read = session.cache
        session.cache = copy.deepcopy(read)
        first = session.generate(joined(ids, more), max_new_tokens=4, **GREEDY)
        session.cache = read
        with pytest.raises(OptionError, match="token 0 is"):
            session.generate(tokens(60, seed=8), max_new_tokens=4, **GREEDY)
        assert torch.equal(session.generate(joined(ids, more), max_new_tokens=4, **GREEDY), first)
    with compress(llama, "snapkv", budget=20) as session, torch.inference_mode():
        made = generate(session, ids[0].tolist(), max_new_tokens=5).tokens
        with pytest.raises(OptionError, match="does not continue the conversation: token 52"):
            session.generate(joined(ids, torch.tensor([[*made[:2], 1, 1, 1, 1]])), max_new_tokens=4, **GREEDY)
        assert session.generate(joined(ids, torch.tensor([made]), more), max_new_tokens=4, **GREEDY).shape[1] == 65


def test_joined_prompts_go_on_as_a_padded_batch(llama: Any) -> None:
    rows, mask = padded_rows(12, 20)
    more = torch.cat([tokens(4), tokens(4, seed=2)])
    whole = joined(mask, torch.ones(2, 4, dtype=torch.long))
    with compress(llama, "snapkv", budget=10) as session:
        with torch.no_grad():
            llama(input_ids=rows, attention_mask=mask, **with_cache(llama, session.new_cache()),
                  position_ids=(mask.cumsum(1) - 1).clamp(min=0))  # fmt: skip
        wanted = session.generate(joined(rows, more), attention_mask=whole, max_new_tokens=4, **GREEDY)
        parts = []
        with torch.no_grad():
            for ids in (rows[:1, 8:], rows[1:]):
                parts.append(session.new_cache())
                llama(input_ids=ids, **with_cache(llama, parts[-1]))
            session.cache = join(parts)
        assert torch.equal(
            session.generate(joined(rows, more), attention_mask=whole, max_new_tokens=4, **GREEDY), wanted
        )


def test_a_batch_of_the_decode_loop_can_be_refused_too(llama: Any) -> None:
    with compress(llama, "snapkv", budget=10) as session:
        generate_batch(session, [tokens(12)[0].tolist(), tokens(20)[0].tolist()], max_new_tokens=3)
        rows, mask = padded_rows(12, 20)
        with pytest.raises(OptionError, match=r"reset\(\)"):
            session.generate(rows, attention_mask=mask, max_new_tokens=4, **GREEDY)


def test_two_sessions_on_one_model_do_not_mix(llama: Any) -> None:
    ids = tokens(50)
    with compress(llama, "snapkv", budget=20) as one, compress(llama, "full") as two:
        said = [session.generate(ids, max_new_tokens=4, **GREEDY) for session in (one, two)]
        for session, answer in zip((one, two), said, strict=True):
            assert session.generate(joined(answer, tokens(3)), max_new_tokens=4, **GREEDY).shape[1] == 61


def test_tokens_told_in_one_mode_are_kept_in_another() -> None:
    told = Conversation()
    with torch.inference_mode():
        told.begin(torch.tensor([[1, 2]]), 0)
        told.end()
    for count in range(2, 200):
        told.begin(torch.tensor([[count]]), count)
        told.end()
    with torch.inference_mode():
        told.begin(torch.tensor([[7]]), 200)
        told.end()
    ids = [1, 2, *range(2, 200), 7, 9]
    assert told.check(torch.tensor([ids]), 201, [0]) is None
    for place in (0, 63, 64, 150, 200):  # what was held before and behind each growth of the buffer
        changed = torch.tensor([[*ids[:place], 5000, *ids[place + 1 :]]])
        with pytest.raises(OptionError, match=f"token {place} is 5000, there it is {ids[place]}; "):
            told.check(changed, 201, [0])


# -- interrupted calls ----------------------------------------------------------------------------------------------


class Interrupting(BaseStreamer):
    """Ctrl-C at the n-th token (the prompt is put first)."""

    def __init__(self, at: int) -> None:
        self.left, self.heard = at, []  # type: ignore[var-annotated]

    def put(self, value: torch.Tensor) -> None:
        self.heard.append(value)
        self.left -= 1
        if self.left < 0:
            raise KeyboardInterrupt

    def end(self) -> None:
        raise AssertionError("it was interrupted")


def test_an_interrupted_answer_can_be_gone_on_with(llama: Any) -> None:
    ids, more = tokens(50), tokens(4, seed=2)
    with compress(llama, "snapkv", budget=20) as session:
        streamer = Interrupting(3)
        with pytest.raises(KeyboardInterrupt):
            session.generate(ids, max_new_tokens=9, streamer=streamer, **GREEDY)
        heard = torch.stack(streamer.heard[1:], 1)
        with pytest.raises(OptionError, match=r"50 tokens are in the conversation already, which has 52.*reset\(\)"):
            session.generate(ids, max_new_tokens=9, **GREEDY)
        resumed = session.generate(joined(ids, heard, more), max_new_tokens=6, **GREEDY)
        session.reset()
        assert torch.equal(session.generate(ids, max_new_tokens=3, **GREEDY), joined(ids, heard))
        assert torch.equal(session.generate(joined(ids, heard, more), max_new_tokens=6, **GREEDY), resumed)


def interrupted_in(model: Any, layer: int, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Ctrl-C while this layer runs, once."""
    module = model.model.layers[layer].mlp
    own = module.forward

    def once(*args: Any, **kwargs: Any) -> Any:
        monkeypatch.setattr(module, "forward", own)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "forward", once)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("chunk", [None, 16])
def test_a_torn_first_turn_leaves_a_fresh_session(
    llama: Any, layer: int, chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compress(llama, "snapkv", budget=20, prefill_chunk=chunk) as session:
        wanted = session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        session.reset()
        interrupted_in(llama, layer, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            session.generate(tokens(50, seed=8), max_new_tokens=4, **GREEDY)
        assert session.cache is None
        assert torch.equal(session.generate(tokens(50), max_new_tokens=4, **GREEDY), wanted)


def test_a_torn_pass_of_a_loop_of_ones_own_is_not_forgotten(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with compress(llama, "snapkv", budget=20) as session, torch.no_grad():
        cache = session.new_cache()
        llama(input_ids=tokens(50), **with_cache(llama, cache))
        interrupted_in(llama, 1, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            llama(input_ids=tokens(1), **with_cache(llama, cache))
        for _ in range(2):
            with pytest.raises(OptionError, match="was interrupted"):
                llama(input_ids=tokens(1), **with_cache(llama, cache))
        with pytest.raises(OptionError, match="was interrupted"):
            session.generate(joined(tokens(50), tokens(2)), max_new_tokens=4, **GREEDY)
        llama(input_ids=tokens(50), **with_cache(llama, session.new_cache()))


@pytest.mark.parametrize("layer", [0, 1])
def test_a_torn_later_turn_asks_for_reset(llama: Any, layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with compress(llama, "snapkv", budget=20) as session:
        said = session.generate(tokens(50), max_new_tokens=4, **GREEDY)
        interrupted_in(llama, layer, monkeypatch)
        for error in (KeyboardInterrupt, OptionError, OptionError):
            with pytest.raises(error, match=None if error is KeyboardInterrupt else r"was interrupted.*reset\(\)"):
                session.generate(joined(said, tokens(3)), max_new_tokens=4, **GREEDY)
        session.reset()
        assert torch.equal(session.generate(tokens(50), max_new_tokens=4, **GREEDY), said)


def test_a_config_can_stand_in_second_place(llama: Any) -> None:
    config = GenerationConfig(max_new_tokens=3, do_sample=False)
    with compress(llama, "full") as session:
        assert session.generate(tokens(50), config).shape[1] == 53

"""Caches of prompts that were read one after another, joined into one batch: each sequence as when it is alone."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.generation import join
from headprobe.compression.policies import POLICIES
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.session import CompressionSession, compress
from headprobe.errors import OptionError
from headprobe.models.releases import with_cache
from tests.compression.test_decoding import MIXED, small_llama, tokens
from tests.compression.test_session import options
from tests.tiny_models import tiny_model

LENGTHS = (31, 57, 12)


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


@torch.inference_mode()
def read(session: CompressionSession, ids: torch.Tensor, mask: torch.Tensor | None = None) -> tuple[RaggedCache, Any]:
    """A cache that has read `ids`, and the logits behind them."""
    cache = session.new_cache()
    positions = None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)
    out = session.model(input_ids=ids, attention_mask=mask, position_ids=positions, **with_cache(session.model, cache))
    return cache, out.logits[:, -1]


def decoded(model: Any, cache: RaggedCache, logits: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """`count` greedy tokens `[B, count]` and the logits behind each `[B, count, vocabulary]`."""
    decoder, chosen, given = Decoder(model, cache), [], []
    for _ in range(count):
        chosen.append(logits.argmax(-1))
        logits = decoder.step(chosen[-1]).clone()
        given.append(logits)
    return torch.stack(chosen, 1), torch.stack(given, 1)


def check_joined(model: Any, name: str, rows: list[torch.Tensor], count: int) -> None:
    with compress(model, **options(model, name), slack=5) as session:
        alone = [decoded(model, *read(session, row), count) for row in rows]
        parts = [read(session, row) for row in rows]
        held = [cache.lengths for cache, _ in parts]
        joined = join([cache for cache, _ in parts])
        assert joined.lengths.tolist() == np.concatenate(held, axis=1).tolist()
        chosen, logits = decoded(model, joined, torch.cat([given for _, given in parts]), count)
    for index, (wanted, behind) in enumerate(alone):
        assert chosen[index].tolist() == wanted[0].tolist()
        largest = float(behind.abs().max())  # a batch rounds otherwise than one row: 1e-5 of the largest logit
        torch.testing.assert_close(logits[index], behind[0], atol=1e-5 * largest, rtol=0.0)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ("full", *MIXED) else pytest.mark.slow) for name in POLICIES]
)
def test_joined_sequences_decode_as_they_do_alone(llama: Any, name: str) -> None:
    check_joined(llama, name, [tokens(n, seed=n) for n in LENGTHS], 64)


@pytest.mark.parametrize("family", ["gemma3", "gpt-oss"])
@pytest.mark.parametrize("lengths", [(10, 40), (9, 13), (30, 25)])
def test_sliding_windows_are_joined_too(family: str, lengths: tuple[int, int]) -> None:
    """Windows of 16 tokens that are full, partly filled, and both."""
    check_joined(tiny_model(family), "headkv-r2", [tokens(n, seed=n, vocabulary=300) for n in lengths], 20)


def test_parts_may_be_padded_batches_and_copies(llama: Any) -> None:
    rows = [tokens(n, seed=n) for n in LENGTHS]
    ids = torch.cat([torch.nn.functional.pad(row, (57 - row.shape[1], 0)) for row in rows[:2]])
    mask = torch.tensor([[0] * 26 + [1] * 31, [1] * 57])
    with compress(llama, **options(llama, "vatp-scissorhands")) as session:
        alone = [decoded(llama, *read(session, row), 12)[0] for row in rows]
        batch, batch_logits = read(session, ids, mask)
        last, last_logits = read(session, rows[2])
        twin = copy.deepcopy(last)
        joined = join([batch, last, twin])
        chosen, _ = decoded(llama, joined, torch.cat([batch_logits, last_logits, last_logits]), 12)
    assert chosen.tolist() == torch.cat([*alone, alone[2]]).tolist()


def test_a_second_turn_and_a_second_join_go_on_from_there(llama: Any) -> None:
    """Sequences that were decoded together for a while take another that comes later."""
    rows, more = [tokens(n, seed=n) for n in LENGTHS], tokens(5, seed=9)
    with compress(llama, **options(llama, "snapkv")) as session, torch.inference_mode():
        alone = []
        for row, turn in zip(rows, (more, more, None), strict=True):
            cache, logits = read(session, row)
            if turn is not None:
                logits = run_step(llama, cache, turn)
            alone.append(decoded(llama, cache, logits, 8)[0])
        first = join([read(session, row)[0] for row in rows[:2]])
        logits = run_step(llama, first, more.repeat(2, 1), first.next_positions(more.device) + torch.arange(5))
        later, later_logits = read(session, rows[2])
        chosen, _ = decoded(llama, join([first, later]), torch.cat([logits, later_logits]), 8)
    assert chosen.tolist() == torch.cat(alone).tolist()


def test_parts_are_emptied_and_memory_is_the_sum(llama: Any) -> None:
    with compress(llama, **options(llama, "snapkv"), slack=5) as session:
        parts = [read(session, tokens(n))[0] for n in (40, 50)]
        before = sum(part.nbytes for part in parts)
        joined = join(parts)
    assert joined.nbytes == before == 2 * 2 * 2 * (20 + 5) * (8 + 8) * 4
    assert [part.nbytes for part in parts] == [0, 0]
    assert joined.tokens_seen == 50
    assert joined.next_positions(torch.device("cpu")).tolist() == [[40], [50]]


def test_kept_positions_are_joined(llama: Any) -> None:
    with compress(llama, **options(llama, "snapkv"), keep_positions=True) as session:
        parts = [read(session, tokens(n, seed=n))[0] for n in (40, 50)]
        wanted = [p.tolist() for part in parts for p in part.ragged_layers[1].positions]
        assert [p.tolist() for p in join(parts).ragged_layers[1].positions] == wanted


def test_what_cannot_be_joined_is_refused(llama: Any) -> None:
    with pytest.raises(OptionError, match="there is nothing to join: 0 caches"):
        join([])
    with compress(llama, **options(llama, "snapkv")) as session:
        first, _ = read(session, tokens(30))
        with pytest.raises(OptionError, match="one of 2 caches is there twice"):
            join([first, first])
        with pytest.raises(OptionError, match="cache 1 has read no prompt"):
            join([first, session.new_cache()])
    with compress(llama, **options(llama, "snapkv", budget=16)) as session:
        other, _ = read(session, tokens(30))
    with pytest.raises(OptionError, match="cache 1 has another policy, budget or model than cache 0"):
        join([first, other])
    assert first.lengths.sum() == 80

"""The decode loop: its tokens, its ends, what the cache holds behind it, and when it captures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from headprobe.compression import decoding
from headprobe.compression.decoding import WARM_UP_STEPS, Decoder, DecodeStep, Sampler, run_step
from headprobe.compression.generation import join
from headprobe.compression.kernels import reference
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.session import CompressionSession, compress
from headprobe.errors import NonFiniteError, OptionError
from tests.compression.recorded_step import RecordedStep
from tests.compression.test_decoding import small_llama, tokens
from tests.compression.test_joining import read
from tests.compression.test_session import options
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


@pytest.fixture
def captures(monkeypatch: pytest.MonkeyPatch) -> type[RecordedStep]:
    """As if there were a GPU that captures, and whose kernels read lengths on the device."""
    monkeypatch.setattr(decoding, "CapturedStep", RecordedStep)
    monkeypatch.setattr(decoding, "_refusal", lambda model, cache: None)
    monkeypatch.setattr(reference, "weigh_by_segment", reference.weigh_masked)
    RecordedStep.made = 0
    return RecordedStep


@contextmanager
def session(llama: Any, name: str = "snapkv", slack: int = 64) -> Iterator[CompressionSession]:
    with compress(llama, **options(llama, name), slack=slack) as opened:
        yield opened


@pytest.fixture
def breaks_after(llama: Any) -> Iterator[Callable[..., None]]:
    """Let a sequence's logits hold a number that is not finite from the so-many-th pass of one token on."""
    hooks = []

    def install(passes: int, value: float = float("nan"), row: int = 0) -> None:
        counted = torch.zeros((), dtype=torch.long)  # on the device, as a replay runs no Python

        def spoil(module: Any, args: Any, kwargs: dict[str, Any], out: Any) -> None:
            if kwargs["input_ids"].shape[1] == 1:
                counted.add_(1)
                logits = out.logits[row, :, 7]
                logits.copy_(torch.where(counted >= passes, value, logits))

        hooks.append(llama.register_forward_hook(spoil, with_kwargs=True))

    yield install
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
@pytest.mark.parametrize(("step", "value"), [(1, torch.nan), (4, torch.nan), (10, torch.inf)])
def test_nan_while_decoding_names_the_token(llama: Any, breaks_after: Any, name: str, step: int, value: float) -> None:
    ids = tokens(40)
    with session(llama, name) as opened:
        logits = run_step(llama, opened.new_cache(), ids)
        breaks_after(step, value)
        match = rf"^NaN or infinity in the logits of new token {step + 1}: it is computed in float32 already"
        with pytest.raises(NonFiniteError, match=match):
            Decoder(llama, opened.cache).run(logits, 16)


def test_nan_is_noticed_in_captured_steps_and_names_the_sequence(llama: Any, captures: Any, breaks_after: Any) -> None:
    with session(llama) as opened:
        caches = [read(opened, tokens(n, seed=n)) for n in (30, 41)]
        cache, logits = join([cache for cache, _ in caches]), torch.cat([logits for _, logits in caches])
        breaks_after(12, row=1)
        with pytest.raises(NonFiniteError, match="in the logits of new token 13 of sequence 1"):
            Decoder(llama, cache).run(logits, 32)
        assert captures.made


def test_logits_that_are_nan_from_the_start_are_the_first_tokens(llama: Any) -> None:
    with session(llama) as opened:
        logits = run_step(llama, opened.new_cache(), tokens(40))
        for value in (torch.nan, torch.inf):
            broken = logits.clone()
            broken[0, 3] = value
            with pytest.raises(NonFiniteError, match="in the logits of new token 1"):
                Decoder(llama, opened.cache).run(broken, 4)


def test_masked_entries_are_no_fault_and_what_comes_behind_the_end_does_not_count(
    llama: Any, captures: Any, breaks_after: Any
) -> None:
    ids = tokens(40)
    with session(llama) as opened:
        logits = run_step(llama, opened.new_cache(), ids)
        wanted = Decoder(llama, opened.cache).run(logits, 6)[0].tolist()
    with session(llama) as opened:
        logits = run_step(llama, opened.new_cache(), ids)
        logits[0, [t for t in range(logits.shape[1]) if t not in wanted]] = -torch.inf
        breaks_after(len(set(wanted)) + 1)
        ends = {wanted[2]}
        first = wanted.index(wanted[2]) + 1
        assert Decoder(llama, opened.cache).run(logits, 32, ends)[0].tolist() == wanted[:first]


def check_agrees(cache: RaggedCache) -> None:
    """Host and device count the same."""
    for store in cache.stores:
        assert store.length.tolist() == store.lengths.tolist()
        assert store.last.tolist() == (store.starts + store.lengths - 1).tolist()


def state(cache: RaggedCache) -> list[Any]:
    """All that a cache holds."""
    held = [t for store in cache.stores for pieces in store.pieces() for t in pieces]
    scores = [t for layer in cache.ragged_layers if layer.evictor for t in (layer.evictor.scores, layer.evictor.tokens)]
    return [cache.tokens_seen, *[t.tolist() for t in (*held, *scores)]]


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
def test_captured_steps_change_nothing(llama: Any, captures: type[RecordedStep], name: str) -> None:
    with session(llama, name) as opened:
        made = []
        for graphs in (False, True):
            cache, logits = read(opened, tokens(50))
            decoder = Decoder(llama, cache, graphs=graphs)
            made.append((decoder.run(logits, 31).tolist(), state(cache)))
            assert decoder.uses_graph is graphs
            check_agrees(cache)
    assert made[0] == made[1]
    assert captures.made == 1


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
@pytest.mark.parametrize("place", [1, 2, 7, 8, 9, 16])
def test_nothing_is_left_of_steps_beyond_the_end(
    llama: Any, captures: type[RecordedStep], name: str, place: int
) -> None:
    """The host looks every few steps; the cache is afterwards as if it had looked at each."""
    with session(llama, name) as opened:
        cache, logits = read(opened, tokens(50))
        free = Decoder(llama, cache).run(logits, 30)[0].tolist()
        last = free.index(free[place])
        made = []
        for graphs in (False, True):
            cache, logits = read(opened, tokens(50))
            given = Decoder(llama, cache, graphs=graphs).run(logits, 30, {free[place]})
            assert given.tolist() == [free[: last + 1]]
            check_agrees(cache)
            made.append(state(cache))
    assert made[0] == made[1]
    assert made[0][0] == 50 + last


def test_without_a_gpu_no_step_beyond_the_end_is_computed(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with session(llama) as opened:
        cache, logits = read(opened, tokens(50))
        free = Decoder(llama, cache).run(logits, 12)[0].tolist()
        calls = []
        monkeypatch.setattr(decoding, "run_step", lambda *given: calls.append(1) or run_step(*given))
        cache, logits = read(opened, tokens(50))
        decoder = Decoder(llama, cache)
        decoder.run(logits, 12, {free[5]})
    assert len(calls) == free.index(free[5])
    assert decoder.graph_refusal == "graphs need a CUDA device, not cpu"


def test_sequences_of_a_batch_end_apart(llama: Any) -> None:
    """The shorter one repeats its end token."""
    rows = [tokens(n, seed=n) for n in (31, 57)]
    with session(llama) as opened:
        free = []
        for row in rows:
            cache, logits = read(opened, row)
            free.append(Decoder(llama, cache).run(logits, 20)[0].tolist())
        first_end = next(t for t in free[0] if t not in free[1])
        second_end = next(t for t in free[1][::-1] if t not in free[0])
        parts = [read(opened, row) for row in rows]
        joined, logits = join([c for c, _ in parts]), torch.cat([given for _, given in parts])
        given = Decoder(llama, joined).run(logits, 20, {first_end, second_end}).tolist()
    a, b = free[0].index(first_end) + 1, free[1].index(second_end) + 1
    longest = max(a, b)
    assert given == [free[0][:a] + [first_end] * (longest - a), free[1][:b] + [second_end] * (longest - b)]
    assert joined.tokens_seen == 57 + longest - 1


def test_a_full_cache_is_laid_out_for_many_tokens_at_once_and_captured_anew(
    llama: Any, captures: type[RecordedStep]
) -> None:
    with session(llama, slack=3) as opened:
        cache, logits = read(opened, tokens(50))
        first = cache.layout
        decoder = Decoder(llama, cache)
        given = decoder.run(logits, 40).tolist()
        assert captures.made == 1
        assert cache.layout != first
        assert [store.room for store in cache.stores] == [3, 3]  # room for all 39 steps was made, and the slack
        plain, logits = read(opened, tokens(50))
        assert given == Decoder(llama, plain, graphs=False).run(logits, 40).tolist()


def test_a_layout_that_others_made_is_noticed(llama: Any, captures: type[RecordedStep]) -> None:
    """A second turn between two runs."""
    with session(llama, slack=9) as opened, torch.inference_mode():
        made = []
        for graphs in (True, False):
            cache, logits = read(opened, tokens(50))
            decoder = Decoder(llama, cache, graphs=graphs)
            first = decoder.run(logits, 8)
            turn = torch.cat([first[:, -1:], tokens(30, seed=5)], 1)
            second = decoder.run(run_step(llama, cache, turn), 12)
            made.append((first.tolist(), second.tolist(), cache.tokens_seen))
            check_agrees(cache)
    assert made[0] == made[1]
    assert made[0][2] == 50 + 7 + 31 + 11
    assert captures.made == 2


def last_new(row: list[int]) -> int:
    """The token that comes up last for the first time."""
    return max(row, key=row.index)


@pytest.mark.parametrize("name", ["snapkv", "h2o"])
@pytest.mark.parametrize("how", ["run", "run to an end", "step"])
def test_a_turn_behind_captured_steps_continues_the_conversation(
    llama: Any, captures: type[RecordedStep], name: str, how: str
) -> None:
    """A replay runs no Python that would see the tokens; what the cache has read is known all the same."""
    made = []
    for graphs in (False, True):
        with session(llama, name) as opened:
            cache, logits = read(opened, tokens(50))
            decoder = Decoder(llama, cache, graphs=graphs)
            if how == "step":
                said = tokens(12, seed=3)
                for token in said[0]:
                    decoder.step(token[None])
            else:
                said = decoder.run(logits, 12, {last_new(made[0][0])} if made and how == "run to an end" else ())
            assert decoder.uses_graph is graphs
            wrong = torch.cat([tokens(50), (said + 1) % 90, tokens(6, seed=5)], 1)
            with pytest.raises(OptionError, match="the prompt does not continue the conversation: token 50 is"):
                opened.generate(wrong, max_new_tokens=4, do_sample=False)
            turn = torch.cat([tokens(50), said, tokens(6, seed=5)], 1)
            made.append((said[0].tolist(), opened.generate(turn, max_new_tokens=4, do_sample=False)[0, -4:].tolist()))
    if how == "run to an end":
        free = made[0][0]
        assert made[1][0] == free[: free.index(last_new(free)) + 1]
    else:
        assert made[0] == made[1]


def test_a_step_is_captured_once_the_warm_ones_have_run(llama: Any, captures: type[RecordedStep]) -> None:
    with session(llama) as opened:
        cache, logits = read(opened, tokens(50))
        decoder = Decoder(llama, cache)
        used = []
        for _ in range(4):
            logits = decoder.step(logits.argmax(-1)).clone()
            used.append(decoder.uses_graph)
    assert used == [index >= WARM_UP_STEPS for index in range(4)]


def test_a_step_that_cannot_be_captured_is_decoded_eagerly(llama: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(step: DecodeStep) -> None:
        before = step.cache.counters
        step.cache.announce()
        step.cache.counters = before
        for store in step.cache.stores:  # on a GPU nothing would have been computed
            store.length -= 1
            store.last -= 1
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(decoding, "CapturedStep", breaks)
    monkeypatch.setattr(decoding, "_refusal", lambda model, cache: None)
    with session(llama) as opened:
        made = []
        for graphs in (True, False):
            cache, logits = read(opened, tokens(50))
            decoder = Decoder(llama, cache, graphs=graphs)
            made.append(decoder.run(logits, 20).tolist())
            check_agrees(cache)
            if graphs:
                wanted = "a step could not be captured: operation not permitted when stream is capturing"
                assert decoder.graph_refusal == wanted
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "look",
    [lambda chosen: chosen.tolist(), lambda chosen: chosen.any(), lambda chosen: chosen.sum().item()],
    ids=["list", "truth", "number"],
)
def test_a_step_that_looks_at_the_device_is_not_captured(
    llama: Any, captures: type[RecordedStep], monkeypatch: pytest.MonkeyPatch, look: Callable[..., Any]
) -> None:
    own = DecodeStep.choose

    def looking(step: DecodeStep, logits: torch.Tensor) -> torch.Tensor:
        chosen = own(step, logits)
        return chosen if look(chosen) else chosen + 1

    with session(llama) as opened:
        cache, logits = read(opened, tokens(50))
        wanted = Decoder(llama, cache, graphs=False).run(logits, 20).tolist()
        monkeypatch.setattr(DecodeStep, "choose", looking)
        cache, logits = read(opened, tokens(50))
        decoder = Decoder(llama, cache)
        assert decoder.run(logits, 20).tolist() == wanted
        check_agrees(cache)
    assert captures.made == 1
    assert decoder.graph_refusal == "a step could not be captured: operation not permitted when stream is capturing"


def test_models_whose_steps_cannot_be_captured_are_known_beforehand() -> None:
    class Gpu:
        """A model as if it lay on a GPU."""

        device = torch.device("cuda")

        def __init__(self, model: Any) -> None:
            self.config = model.config

    def refusal(model: Any) -> str | None:
        with compress(model, **options(model, "snapkv")) as opened:
            return decoding._refusal(Gpu(model), opened.new_cache())

    assert refusal(tiny_model("llama")) is None
    assert refusal(tiny_model("gemma3")) == "sliding-window and linear layers allocate at every step"
    moving = tiny_model("llama")
    moving.config.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    assert refusal(moving) == "dynamic rotary embeddings look at positions on the host"


def test_sampling_follows_its_seed_and_its_filters(llama: Any) -> None:
    def drawn(sampler: Sampler | None) -> list[int]:
        with session(llama) as opened:
            cache, logits = read(opened, tokens(50))
            row: list[int] = Decoder(llama, cache, sampler=sampler).run(logits, 16)[0].tolist()
        return row

    greedy = drawn(None)
    assert drawn(Sampler(top_k=1)) == greedy
    assert drawn(Sampler(temperature=3.0, seed=1)) == drawn(Sampler(temperature=3.0, seed=1)) != greedy
    assert drawn(Sampler(temperature=3.0, seed=1)) != drawn(Sampler(temperature=3.0, seed=2))


def test_captured_and_eager_steps_draw_the_same(llama: Any, captures: type[RecordedStep]) -> None:
    with session(llama) as opened:
        made = []
        for graphs in (True, False):
            cache, logits = read(opened, tokens(50))
            made.append(Decoder(llama, cache, sampler=Sampler(2.0, seed=4), graphs=graphs).run(logits, 25).tolist())
    assert made[0] == made[1]

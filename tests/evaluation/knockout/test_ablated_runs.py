"""Answers and losses of many head sets in one batch, against each set alone through `generate` and whole passes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from headprobe.errors import DeviceMemoryError, NonFiniteError
from headprobe.evaluation.knockout import ablated_runs
from headprobe.evaluation.knockout.ablated_runs import AblatedRuns, sets_per_batch
from headprobe.evaluation.knockout.switched_off import hidden_span
from headprobe.models.loading import LoadedModel, load_model
from headprobe.probes.prompt import Prompt
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.spans import Span
from tests.evaluation.knockout.test_switched_off import projected
from tests.tiny_models import build_tiny_model

SETS = ((), ((0, 1), (1, 2)), ((1, 0), (1, 1), (1, 2), (1, 3)), ((0, 0),))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(build_tiny_model("llama", tmp_path_factory.mktemp("models"))), device="cpu")


@pytest.fixture(scope="module")
def prompts(loaded: LoadedModel) -> tuple[Prompt, ...]:
    """Their gold answers agree with the model's own words for none, some, or all of the tokens."""
    job = prepare(loaded, ScoreOptions(lengths=(420,), depths=3, needles_per_cell=1))
    made = []
    for prompt, agreeing in zip(job.prompts, (0, 3, 8), strict=True):
        own = plain_tokens(loaded, prompt, 8, nullcontext)
        gold = own[:agreeing] + tuple((token + 1) % 300 + 3 for token in own[agreeing:])
        made.append(replace(prompt, answer_ids=gold))
    return tuple(made)


def plain_tokens(loaded: LoadedModel, prompt: Prompt, count: int, off: Callable[[], Any]) -> tuple[int, ...]:
    """Greedy tokens, each from a whole pass over everything before it."""
    ids = list(prompt.input_ids)
    with off(), torch.no_grad():
        while len(ids) < len(prompt.input_ids) + count and (len(ids) == len(prompt.input_ids) or ids[-1] != 2):
            ids.append(int(loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tuple(ids[len(prompt.input_ids) :])


def plain_loss(loaded: LoadedModel, ids: tuple[int, ...], first: int, off: Callable[[], Any]) -> float:
    """The mean loss of the tokens from `first` on, from one whole pass."""
    with off(), torch.no_grad():
        logits = loaded.model(torch.tensor([ids]), use_cache=False).logits[0]
    return float(cross_entropy(logits[first - 1 : -1], torch.tensor(ids[first:])))


def off_by(loaded: LoadedModel, mode: str, heads: Any, span: Span) -> Callable[[], AbstractContextManager[None]]:
    if mode == "mask":
        return lambda: hidden_span(loaded.model, heads, span)
    return lambda: projected(loaded.model, heads)


@pytest.mark.parametrize("mode", ["mask", "zero"])
@pytest.mark.parametrize("pass_tokens", [8192, 300])
def test_answers_and_their_losses_are_those_of_each_set_alone(
    loaded: LoadedModel, prompts: tuple[Prompt, ...], mode: str, pass_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablated_runs, "PASS_TOKENS", pass_tokens)
    found = dict(AblatedRuns(loaded, SETS, mode).answers(prompts))
    assert set(found) == set(prompts)
    for prompt in prompts:
        for heads, said in zip(SETS, found[prompt], strict=True):
            off = off_by(loaded, mode, heads, prompt.answer_span)
            assert said.tokens == plain_tokens(loaded, prompt, len(prompt.answer_ids), off)
            due = plain_loss(loaded, prompt.input_ids + prompt.answer_ids, len(prompt.input_ids), off)
            assert said.loss == pytest.approx(due, abs=1e-4)


@pytest.mark.parametrize("mode", ["mask", "zero"])
def test_what_has_not_answered_by_the_length_of_the_answer_is_read_on(
    loaded: LoadedModel, prompts: tuple[Prompt, ...], mode: str
) -> None:
    """Two of four rows are read on: those whose last token of the first eight has an even number."""
    asked: list[tuple[int, ...]] = []

    def reads_on(prompt: Prompt, produced: Any) -> bool:
        asked.append(tuple(produced))
        return bool(produced[-1] % 2 == 0)

    found = dict(AblatedRuns(loaded, SETS, mode, reads_on=reads_on).answers(prompts))
    lengths = set()
    for prompt in prompts:
        for heads, said in zip(SETS, found[prompt], strict=True):
            due = plain_tokens(loaded, prompt, 16, off_by(loaded, mode, heads, prompt.answer_span))
            assert said.tokens == due[:8]
            assert said.read_on == (due[8:] if len(due) >= 8 and due[7] % 2 == 0 else ())
            lengths.add(len(said.read_on))
    assert lengths == {0, 8}
    assert all(len(produced) == 8 for produced in asked)
    assert len(asked) == len(prompts) * len(SETS)


def test_what_a_prompt_gives_does_not_depend_on_what_is_done(loaded: LoadedModel, prompts: tuple[Prompt, ...]) -> None:
    for mode in ("mask", "zero"):
        runs = AblatedRuns(loaded, SETS, mode)
        every = dict(runs.answers(prompts))
        rest = dict(runs.answers(prompts, {prompts[0].trial_id}))
        assert rest == {prompt: said for prompt, said in every.items() if prompt is not prompts[0]}
        assert dict(runs.answers(prompts, {prompt.trial_id for prompt in prompts})) == {}


@pytest.mark.parametrize("mode", ["mask", "zero"])
def test_losses_of_texts_are_those_of_whole_passes(
    loaded: LoadedModel, prompts: tuple[Prompt, ...], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablated_runs, "LOGITS", 384 * len(SETS) * 7)  # seven tokens at a time
    texts, span = [prompt.input_ids[:90] for prompt in prompts], Span(20, 31)
    found = dict(AblatedRuns(loaded, SETS, mode).losses(texts, span, done={1}))
    assert sorted(found) == [0, 2]
    for number, losses in found.items():
        for heads, loss in zip(SETS, losses, strict=True):
            first = span.end + 1 if mode == "mask" else 1
            due = plain_loss(loaded, texts[number], first, off_by(loaded, mode, heads, span))
            assert loss == pytest.approx(due, abs=1e-5)


def test_rotary_frequencies_that_move_with_the_length_share_nothing_and_give_no_loss(
    loaded: LoadedModel, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablated_runs, "moving_rope", lambda model: "dynamic")
    for mode in ("mask", "zero"):
        for prompt, said in AblatedRuns(loaded, SETS, mode).answers(prompts):
            for heads, each in zip(SETS, said, strict=True):
                off = off_by(loaded, mode, heads, prompt.answer_span)
                assert each.tokens == plain_tokens(loaded, prompt, len(prompt.answer_ids), off)
                assert each.loss is None


def test_broken_numbers_end_the_run(loaded: LoadedModel, prompts: tuple[Prompt, ...]) -> None:
    means = torch.full((2, 4, 8), float("nan")).double().numpy()
    with pytest.raises(NonFiniteError, match="NaN or infinity in the logits of trial"):
        list(AblatedRuns(loaded, SETS, "mean", means).answers(prompts[:1]))


def test_memory_that_runs_out_is_said_with_what_would_help(
    loaded: LoadedModel, prompts: tuple[Prompt, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr(AblatedRuns, "_pass", exhaust)
    with pytest.raises(
        DeviceMemoryError, match=r"4 head sets at \d+ tokens do not fit on cpu: take a smaller --batch or"
    ):
        list(AblatedRuns(loaded, SETS, "zero").answers(prompts))
    with pytest.raises(DeviceMemoryError, match="1 head sets at 90 tokens do not fit on cpu: take shorter --lengths"):
        list(AblatedRuns(loaded, SETS[:1], "zero").losses([prompts[0].input_ids[:90]], None))

    def fail(*arguments: Any, **named: Any) -> Any:
        raise ZeroDivisionError(arguments, named)

    monkeypatch.setattr(AblatedRuns, "_pass", fail)
    with pytest.raises(ZeroDivisionError):
        list(AblatedRuns(loaded, SETS, "zero").answers(prompts))


def test_batches_hold_as_many_sets_as_their_caches_fit(loaded: LoadedModel) -> None:
    per_token = 2 * 2 * 2 * 8 * 4  # keys and values, layers, KV heads, width, bytes
    assert sets_per_batch(loaded, 100) == 16
    assert sets_per_batch(loaded, 2**31 // per_token // 3) == 3
    assert sets_per_batch(loaded, 2**40) == 1

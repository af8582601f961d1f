"""Answers and losses of a model with heads switched off: a batch of head sets goes through each prompt together.

Prompts of one haystack share their beginning, which is read once. Where an answer's span is hidden, nothing changes up
to its end, so that all sets share the prompt up to there; where outputs are replaced, every set has a cache of its own
from the first token on. The gold answer goes in together with the prompt: as far as a set's own greedy choices agree
with it they are those of step-by-step decoding, and from the first other choice on the set goes on alone. What has not
answered by the length of the gold answer may be read on, as in scoring.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from headprobe.errors import DeviceMemoryError
from headprobe.evaluation.knockout.switched_off import MASK, ZERO, HeadSet, switched_off
from headprobe.models.config import moving_rope
from headprobe.models.devices import is_out_of_memory
from headprobe.models.finite import non_finite, usable
from headprobe.models.loading import LoadedModel
from headprobe.models.releases import with_cache
from headprobe.probes.prompt import Prompt
from headprobe.profiling.prefix import PrefixCache, crop, prefix_order
from headprobe.profiling.scoring import eos_token_ids
from headprobe.profiling.steps import ANSWER_STEPS
from headprobe.scores.head_scores import Floats
from headprobe.spans import Span
from headprobe.stages import DECODE, PREFILL, SCORING, stage

PASS_TOKENS = 8192  # of all sequences of a batch that go through the model at a time
LOGITS = 1 << 26  # numbers of logits that are held at a time
CACHE_BYTES = 2**31  # of keys and values of a batch
MOST_SETS = 16


@dataclass(frozen=True)
class Said:
    """What the model wrote with a set of heads off: its greedy tokens, as many as the gold answer has at most, and the
    mean negative log-likelihood (nats per token) of the gold answer; None where it cannot be had in one pass.
    `read_on`: the tokens behind them of an answer that was read on."""

    tokens: tuple[int, ...]
    loss: float | None
    read_on: tuple[int, ...] = ()


ReadsOn = Callable[[Prompt, Sequence[int]], bool]


def most_read(loaded: LoadedModel, prompt: Prompt) -> int:
    """The most tokens of an answer that are read: twice as many as the gold answer has, as far as the window goes."""
    return ANSWER_STEPS.read(len(prompt.answer_ids), max(0, loaded.window - len(prompt.input_ids)))


def sets_per_batch(loaded: LoadedModel, tokens: int) -> int:
    """How many head sets go through prompts of `tokens` tokens together: at most 16, and 2 GiB of keys and values."""
    per_token = loaded.geometry.kv_bytes_per_token(torch.finfo(loaded.model.dtype).bits // 8)
    return max(1, min(MOST_SETS, CACHE_BYTES // (per_token * max(tokens, 1))))


class AblatedRuns:
    """Runs one batch of head sets (`rows`) in one `mode`; `means` as in `switched_off`.

    `reads_on`: whether an answer that has as many tokens as the gold answer is to be read on, up to twice as many.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        rows: Sequence[HeadSet],
        mode: str,
        means: Floats | None = None,
        reads_on: ReadsOn | None = None,
    ) -> None:
        self.loaded, self.model = loaded, loaded.model
        self.rows, self.mode, self.means, self._reads_on = tuple(rows), mode, means, reads_on
        self._layers = self.model.config.get_text_config(decoder=True).num_hidden_layers
        self._is_moving = moving_rope(self.model) is not None
        self._ends = eos_token_ids(loaded)

    def answers(self, prompts: Sequence[Prompt], done: Collection[str] = ()) -> Iterator[tuple[Prompt, list[Said]]]:
        """Each prompt that is not in `done` (trial ids) with what every row said, in the order that shares most.

        What a prompt gives does not depend on `done`. Raises `NonFiniteError`, `DeviceMemoryError`, and as
        `switched_off`.
        """
        order, shared = prefix_order(prompts)
        if all(prompt.trial_id in done for prompt in prompts):
            return
        if self._is_moving:
            shared = [0] * len(prompts)
        capacity = max(len(p.input_ids) + most_read(self.loaded, p) for p in prompts)
        base = PrefixCache(self._layers, capacity)
        cache = PrefixCache(self._layers, capacity) if self.mode == MASK else base
        try:
            self._read(base, prompts[order[0]].input_ids[: shared[0]])
            for index, length in zip(order, shared, strict=True):
                if prompts[index].trial_id not in done:
                    yield prompts[index], self._answer(prompts[index], base, cache, length)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_large(capacity) from error

    def losses(
        self, texts: Sequence[Sequence[int]], hidden: Span | None, done: Collection[int] = ()
    ) -> Iterator[tuple[int, list[float]]]:
        """For each text (token ids) not in `done` (numbers) the mean loss of every row, in nats per token.

        In `mask` mode `hidden` stands for an answer's span, and only tokens behind it count.
        """
        for number, text in enumerate(texts):
            if number in done:
                continue
            try:
                yield number, self._text_loss(text, hidden)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                raise self._too_large(len(text)) from error

    # -- one prompt -------------------------------------------------------------------------------------------------

    def _answer(self, prompt: Prompt, base: PrefixCache, cache: PrefixCache, shared: int) -> list[Said]:
        crop(base, shared)
        if self._is_moving:
            self._forget_length(base)
        start = shared
        if self.mode == MASK:
            start = 0 if self._is_moving else min(prompt.answer_span.end, len(prompt.input_ids) - 1)
            self._read(base, prompt.input_ids[shared:start])
            _spread(base, cache, start, len(self.rows))
        with self._off(prompt.answer_span):
            return self._greedy(prompt, cache, start)

    @torch.inference_mode()
    def _greedy(self, prompt: Prompt, cache: PrefixCache, start: int) -> list[Said]:
        gold, end = prompt.answer_ids, len(prompt.input_ids)
        block = () if self._is_moving else gold[:-1]
        with stage(PREFILL):
            logits = self._forward(cache, prompt.input_ids[start:] + block, len(block) + 1)
            self._check_finite(logits, f"trial {prompt.trial_id}")
        losses = self._gold_losses(logits, gold)
        choices = logits.argmax(-1).tolist()
        produced = [self._agreed(row, gold[: len(block)]) for row in choices]
        limits = [self._limit(prompt, row) for row in produced]
        open_rows = [len(row) for row, limit in zip(produced, limits, strict=True) if len(row) < limit]
        position = min(open_rows, default=len(gold))
        crop(cache, end + position - 1)
        while any(len(row) < limit for row, limit in zip(produced, limits, strict=True)):
            fed = [row[min(position, len(row)) - 1] for row in produced]
            with stage(DECODE):
                logits = self._pass(cache, torch.tensor(fed, device=self.model.device)[:, None], 1)
                self._check_finite(logits, f"trial {prompt.trial_id}")
            for place, choice in enumerate(logits[:, -1].argmax(-1).tolist()):
                if len(produced[place]) == position < limits[place]:
                    produced[place].append(choice)
                    limits[place] = self._limit(prompt, produced[place], limits[place])
            position += 1
        pairs = zip(produced, losses, strict=True)
        return [Said(tuple(row[: len(gold)]), loss, tuple(row[len(gold) :])) for row, loss in pairs]

    def _agreed(self, choices: list[int], gold: Sequence[int]) -> list[int]:
        """The row's own greedy tokens: as far as they are those that were put in, and the first other one."""
        for place, token in enumerate(gold):
            if choices[place] != token or choices[place] in self._ends:
                return choices[: place + 1]
        return choices[: len(gold) + 1]

    def _limit(self, prompt: Prompt, produced: Sequence[int], so_far: int = 0) -> int:
        """How many tokens a row has in the end, as far as is known from those that it has."""
        gold = len(prompt.answer_ids)
        if produced[-1] in self._ends:
            return len(produced)
        if len(produced) != gold:
            return max(gold, so_far)
        reads_on = self._reads_on is not None and self._reads_on(prompt, produced)
        return most_read(self.loaded, prompt) if reads_on else gold

    def _gold_losses(self, logits: torch.Tensor, gold: Sequence[int]) -> list[float | None]:
        if logits.shape[1] < len(gold):
            return [None] * len(self.rows)
        return list(_mean_losses(logits, torch.tensor(gold, device=logits.device)))

    # -- one text ---------------------------------------------------------------------------------------------------

    @stage(SCORING)
    @torch.inference_mode()
    def _text_loss(self, text: Sequence[int], hidden: Span | None) -> list[float]:
        cache = PrefixCache(self._layers, len(text))
        first = hidden.end if self.mode == MASK and hidden is not None else 0
        ids = torch.tensor(list(text), device=self.model.device)
        vocabulary = self.model.config.get_text_config(decoder=True).vocab_size
        step = max(1, min(self._chunk, LOGITS // (vocabulary * len(self.rows))))
        sums = torch.zeros(len(self.rows), dtype=torch.float64)
        with self._off(hidden):
            for start in range(0, len(text) - 1, len(text) if self._is_moving else step):
                part = ids[start : len(text) - 1 if self._is_moving else min(start + step, len(text) - 1)]
                logits = self._pass(cache, part.expand(len(self.rows), -1), len(part))
                self._check_finite(logits, "plain text")
                skipped = min(max(0, first - start), len(part))
                wanted = ids[start + skipped + 1 : start + len(part) + 1]
                if len(wanted):
                    sums += torch.tensor(_mean_losses(logits[:, skipped:], wanted), dtype=torch.float64) * len(wanted)
        return (sums / (len(text) - 1 - first)).tolist()

    # -- passes through the model -----------------------------------------------------------------------------------

    @property
    def _chunk(self) -> int:
        return max(1, PASS_TOKENS // len(self.rows))

    def _off(self, span: Span | None) -> Any:
        return switched_off(
            self.model, self.rows, self.mode, span=span if self.mode == MASK else None, means=self.means
        )

    @stage(PREFILL)
    @torch.inference_mode()
    def _read(self, base: PrefixCache, tokens: Sequence[int]) -> None:
        """Read what all prompts share: in `mask` mode one sequence of which nothing is hidden yet."""
        if not tokens:
            return
        with switched_off(self.model, ((),), ZERO) if self.mode == MASK else self._off(None):
            rows = 1 if self.mode == MASK else len(self.rows)
            ids = torch.tensor(list(tokens), device=self.model.device)
            step = max(1, PASS_TOKENS // rows)
            for start in range(0, len(tokens), step):
                self._pass(base, ids[start : start + step].expand(rows, -1), 1)

    def _forward(self, cache: PrefixCache, tokens: Sequence[int], keep: int) -> torch.Tensor:
        """Logits `[rows, keep, vocabulary]` of the last `keep` tokens."""
        ids = torch.tensor(list(tokens), device=self.model.device).expand(len(self.rows), -1)
        head = 0 if self._is_moving else max(0, len(tokens) - max(self._chunk, keep))
        for start in range(0, head, self._chunk):
            self._pass(cache, ids[:, start : min(start + self._chunk, head)], 1)
        return self._pass(cache, ids[:, head:], keep)

    def _pass(self, cache: PrefixCache, ids: torch.Tensor, keep: int) -> torch.Tensor:
        model: Any = self.model
        # Places, not a number: a slice of several sequences is not contiguous, and the product with it would copy the
        # weights of the output layer once per sequence.
        last = torch.arange(ids.shape[1] - keep, ids.shape[1], device=ids.device)
        out = model(input_ids=ids, **with_cache(model, cache), use_cache=True, logits_to_keep=last)
        logits: torch.Tensor = out.logits[:, -keep:]
        return logits

    @torch.inference_mode()
    def _forget_length(self, base: PrefixCache) -> None:
        """Let "dynamic" frequencies begin anew: a pass below the original length sets them back."""
        crop(base, 0)
        self._read(base, (0,))
        crop(base, 0)

    def _check_finite(self, logits: torch.Tensor, where: str) -> None:
        if not bool(usable(logits).all()):
            raise non_finite(self.model, f"NaN or infinity in the logits of {where}")

    def _too_large(self, tokens: int) -> DeviceMemoryError:
        advice = "take a smaller --batch or shorter --lengths" if len(self.rows) > 1 else "take shorter --lengths"
        return DeviceMemoryError(
            f"{len(self.rows)} head sets at {tokens} tokens do not fit on {self.model.device}: {advice}"
        )


def _mean_losses(logits: torch.Tensor, wanted: torch.Tensor) -> list[float]:
    """Mean cross-entropy `[rows]` of `logits` `[rows, T, vocabulary]` at the tokens `wanted` `[T]`."""
    return [float(cross_entropy(row.float(), wanted)) for row in logits]


def _spread(base: PrefixCache, cache: PrefixCache, length: int, rows: int) -> None:
    """Make `cache` hold the first `length` tokens of `base` in every row."""
    crop(cache, 0)
    pairs: Any = zip(base.layers, cache.layers, strict=True)
    for source, target in pairs:
        if source.is_initialized and length:
            target.update(*(t[:, :, :length].expand(rows, -1, -1, -1) for t in (source.keys, source.values)))

"""Run prompts through a model and score its heads, sharing the prefix that the prompts have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headprobe.attention.rows import AttentionRows, Consumer, row_capture, wanted_rows
from headprobe.errors import DeviceMemoryError, ModelError
from headprobe.events import RETRY, emit
from headprobe.models.config import moving_rope
from headprobe.models.devices import is_out_of_memory
from headprobe.models.finite import non_finite, usable
from headprobe.models.placement import head_spread
from headprobe.models.releases import with_cache
from headprobe.probes.prompt import Prompt
from headprobe.probes.reading import AnyPrompt, Reading
from headprobe.profiling.estimators.estimator import (
    ANSWER,
    NEEDLES,
    QUESTION,
    Estimator,
    ReadingEstimator,
    Target,
    prompts_of,
    rows_of,
)
from headprobe.profiling.estimators.logit import Logit, Unembedding
from headprobe.profiling.steps import step_rule
from headprobe.spans import Span
from headprobe.stages import DECODE, PREFILL, SCORING, stage

# A cache whose end can be dropped and written anew: the shared prefix of many prompts, kept in place.
#
# Buffers are allocated once for the longest prompt; adding tokens writes behind those that are there, and dropping
# them only moves the end. transformers' own dynamic cache copies everything it holds whenever a token is added.


class PrefixLayer(CacheLayerMixin):
    """Keys and values of one layer, `[B, G, capacity, d]`, of which the first `length` positions are in use.

    `on_host`: they lie in the host's memory, and those in use are copied to the device for each pass, layer by layer.
    """

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int, on_host: bool = False) -> None:
        super().__init__()
        self.capacity, self.length, self.on_host = capacity, 0, on_host

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys, self.values = (self._buffer(states) for states in (key_states, value_states))
        self.is_initialized = True

    def _buffer(self, states: torch.Tensor) -> torch.Tensor:
        shape = (*states.shape[:2], self.capacity, states.shape[-1])
        if not self.on_host:
            return states.new_empty(shape)
        return torch.empty(shape, dtype=states.dtype, pin_memory=states.is_cuda)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write new keys and values behind those in use; gives views of all in use."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        start, self.length = self.length, self.length + key_states.shape[2]
        if self.length > self.capacity:
            raise ModelError(
                f"a layer caches {self.length} tokens of at most {self.capacity}: the model goes through its layers "
                "more than once for each token, so its heads have no attention of their own"
            )
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        keys, values = self.keys[:, :, : self.length], self.values[:, :, : self.length]
        return (keys.to(self.device), values.to(self.device)) if self.on_host else (keys, values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """All positions in use and the new ones."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Positions in use."""
        return self.length

    def get_max_length(self) -> int:
        """The capacity."""
        return self.capacity

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last `-tokens_to_remove` positions, as transformers counts them."""
        self.length -= abs(tokens_to_remove)


class PrefixCache(Cache):
    """A cache for at most `capacity` tokens of one sequence, in all `num_layers` layers; see `PrefixLayer`."""

    def __init__(self, num_layers: int, capacity: int, on_host: bool = False) -> None:
        super().__init__(layers=[PrefixLayer(capacity, on_host) for _ in range(num_layers)])


# Run prompts through a model and score its heads, sharing the prefix that the prompts have in common.
#
# Prompts of one haystack are equal up to their insertion points. They are taken in order of falling insertion point:
# the haystack up to the deepest one is computed once, and every prompt starts from the part of it that it shares, by
# cropping the cache back. What a trial computes does not depend on which trials ran before it, so a resumed run
# gives the same bytes. The gold answer goes in together with the prompt: as far as the model's own greedy choice
# agrees with it, those rows are exactly the rows of step-by-step decoding; from the first disagreement on the model
# goes on alone.
#
# Where rotary frequencies change with the length of a pass, nothing is shared, and a prompt is read in one pass and
# answered step by step, as the model would do by itself.
#
# All methods that look at needles share one pass; for rows of the question it is only looked at from there on, and a
# null question is read in a short pass of its own, on the same context. Texts that are read twice are taken behind the
# needles, in blocks, and all methods that look at one kind of text share its passes.

MIN_PREFILL_CHUNK = 256
READING_ROWS = 128  # rows per block of a text that is read twice: its logits are as wide as the vocabulary
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Measured:
    """What one trial gave: the tokens of the steps that are scored, per estimator name the scores `[L, H]` (float64),
    and the tokens behind them that only the gate read.

    `copied`: of a text that was read twice the share of the second reading's tokens that the model foretold.
    """

    produced: tuple[int, ...]
    scores: dict[str, torch.Tensor]
    read_on: tuple[int, ...] = ()
    copied: float | None = None


@dataclass(frozen=True)
class Skipped:
    """A trial that did not fit on the device even in the smallest pieces."""

    reason: str


class Profiler:
    """Measures prompts on one model with one or more estimators.

    `prefill_chunk`: most tokens that go through the model at a time; halved when the device runs out of memory,
    down to 256; then keys and values move to the host's memory (`on_host`), once, and after that the trial is skipped.
    `window`: tokens that the model can see; None for no limit.
    `reads_on`: whether a trial that produced these tokens is to be read on behind the steps that are scored.
    """

    def __init__(
        self,
        model: Any,
        estimators: Sequence[Estimator],
        eos_token_ids: set[int],
        *,
        prefill_chunk: int = 8192,
        window: int | None = None,
        reads_on: Callable[[Prompt, Sequence[int]], bool] | None = None,
    ) -> None:
        self.model, self._config = model, model.config.get_text_config(decoder=True)
        self._spread = head_spread(model)
        self.estimators = tuple(estimators)
        self._steps = step_rule(self.estimators)
        self.eos_token_ids = eos_token_ids if self._steps.ends else set()
        self.prefill_chunk, self._window, self._reads_on = prefill_chunk, window, reads_on
        self._is_moving = moving_rope(model) is not None
        self._longest, self._asked_chunk = 0, prefill_chunk
        self.on_host = False
        self._cache = self._new_cache()
        self._on_needles = [e for e in self.estimators if prompts_of(e) == NEEDLES]
        self._on_question = any(rows_of(e) == QUESTION for e in self._on_needles)
        self._output = Unembedding(model) if any(isinstance(e, Logit) for e in self.estimators) else None
        self._evidence: dict[str, list[torch.Tensor]] = {}
        self._finite: list[torch.Tensor] = []

    def measure(
        self, prompts: Sequence[AnyPrompt], done: Collection[str] = ()
    ) -> Generator[tuple[AnyPrompt, Measured | Skipped]]:
        """Yield each prompt whose trial is not in `done` with what it gave, in the order that shares most.

        Raises `NonFiniteError` naming trial and layer at NaN or infinity (in the logits of the answer, or in attention
        on the way to them), `DeviceMemoryError` when nothing fits.
        """
        order, shared = prefix_order(prompts)
        if self._is_moving:
            shared = [0] * len(prompts)
        if self._on_question:
            shared = [min(n, _before_question(prompts[i])) for i, n in zip(order, shared, strict=True)]
        if all(prompts[i].trial_id in done for i in order):
            return
        fitted = bool(done)
        self._longest = max(len(p.input_ids) + self._limits(p)[1] for p in prompts)
        self._cache = self._new_cache()
        with row_capture(self.model):
            prefix = prompts[order[0]].input_ids[: shared[0]]
            self._fit(lambda: self._extend(prefix), len(prefix))
            for index, length in zip(order, shared, strict=True):
                prompt = prompts[index]
                if prompt.trial_id not in done:
                    work = (
                        partial(self._read, prompt)
                        if isinstance(prompt, Reading)
                        else partial(self._trial, prompt, length)
                    )
                    result = self._fit(work, len(prompt.input_ids))
                    fitted |= isinstance(result, Measured)
                    yield prompt, result
        if not fitted:
            raise DeviceMemoryError(
                f"no trial fits on {self.model.device}: use shorter --lengths (the shortest prompt has "
                f"{min(len(p.input_ids) for p in prompts)} tokens) or another --device or --dtype"
            )

    def _new_cache(self) -> PrefixCache:
        return PrefixCache(self._config.num_hidden_layers, self._longest, self.on_host)

    def _can_move_to_host(self) -> bool:
        """Whether keys and values can make room on the device: not where that is the host, or they are there."""
        return not self.on_host and self.model.device.type != "cpu"

    # -- memory -----------------------------------------------------------------------------------------------------

    def _fit(self, work: Callable[[], _Result], tokens: int) -> _Result | Skipped:
        """Do `work`; when memory runs out, again in pieces of half the size, and at the smallest give up."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if self._spread is not None:  # the others are in the middle of a pass, and wait
                    raise DeviceMemoryError(
                        f"{tokens} tokens do not fit on {self.model.device} in chunks of {self.prefill_chunk}: take a "
                        "smaller --prefill-chunk, shorter --lengths or more processes"
                    ) from error
            # Outside the except clause: its traceback would hold the tensors that are to be freed.
            at_end = self._is_moving or self.prefill_chunk <= MIN_PREFILL_CHUNK
            moves = at_end and self._can_move_to_host()
            self.on_host |= moves
            self._cache = self._new_cache()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if moves:
                self.prefill_chunk = self._asked_chunk
                continue
            if at_end:
                return Skipped(f"out of memory on {self.model.device} at {tokens} tokens")
            self.prefill_chunk = max(MIN_PREFILL_CHUNK, self.prefill_chunk // 2)
            reason = f"out of memory on {self.model.device} at {tokens} tokens"
            emit(RETRY, reason=reason, prefill_chunk=self.prefill_chunk)

    # -- one trial --------------------------------------------------------------------------------------------------

    def _limits(self, prompt: AnyPrompt) -> tuple[int, int]:
        """How many tokens of a trial are scored at most, and how many are read."""
        answer, used = len(prompt.answer_ids), len(prompt.input_ids)
        room = max(0, self._window - used) if self._window is not None else 2**31
        return self._steps.scored(answer, room), self._steps.read(answer, room)

    def _trial(self, prompt: Prompt, shared: int) -> Measured:
        """Prompt and gold answer in one pass on top of the shared prefix, then alone from the first disagreement."""
        self._crop(shared)
        if self._is_moving:
            self._forget_length()
        self._extend(prompt.input_ids[:shared])
        target = self._target(prompt)
        gold, (steps, most) = prompt.answer_ids, self._limits(prompt)
        block = () if self._is_moving else gold[: min(len(gold), steps) - 1]
        rows = len(block) + 1
        if self._on_question:
            rows += len(prompt.input_ids) - 1 - prompt.question_span.start
        self._begin()
        with stage(PREFILL):
            logits = self._forward(prompt.input_ids[shared:] + block, rows, partial(self._take, target, len(block) + 1))
            self._check_finite(prompt, logits)
        choices = logits[-len(block) - 1 :].argmax(-1).tolist()
        last = len(block)
        agreed = next((t for t in range(last) if choices[t] != gold[t] or choices[t] in self.eos_token_ids), last)
        taken = agreed + 1
        produced = choices[:taken]
        evidence: dict[str, list[torch.Tensor]] = {}
        for e in self._on_needles:
            found = torch.stack(self._evidence[e.name])
            evidence[e.name] = [found if rows_of(e) == QUESTION else found[:, :, :taken]]
        if taken < steps and produced[-1] not in self.eos_token_ids:
            self._crop(len(prompt.input_ids) + agreed)
            with stage(DECODE):
                self._go_on(produced, steps, target, evidence, prompt)
        with stage(DECODE):
            read_on = self._read_on(prompt, produced, most)
        if self._on_question:
            with stage(PREFILL):
                self._ask_nothing(prompt, target, evidence)
        with stage(SCORING):
            scores = {
                e.name: e.trial_scores(self._of_all(torch.cat(evidence[e.name], 2)), target, produced).cpu()
                for e in self._on_needles
            }
        self._crop(shared)
        return Measured(tuple(produced), scores, read_on)

    def _read_on(self, prompt: Prompt, produced: Sequence[int], most: int) -> tuple[int, ...]:
        """What the model says next, up to `most` tokens in all; nothing where it has ended or need not be read on."""
        said = list(produced)
        if said[-1] in self.eos_token_ids or self._reads_on is None or not self._reads_on(prompt, produced):
            return ()
        self._crop(len(prompt.input_ids) + len(said) - 1)
        while len(said) < most and said[-1] not in self.eos_token_ids:
            logits = self._pass((said[-1],), 1)
            if not bool(usable(logits).all()):
                raise non_finite(self.model, f"NaN or infinity in the logits in trial {prompt.trial_id}")
            said.append(int(logits[-1].argmax()))
        return tuple(said[len(produced) :])

    def _target(self, prompt: Prompt) -> Target:
        spans = prompt.answer_span, prompt.distractor_span, prompt.question_span
        return Target(prompt.input_ids, *spans, output=self._output)

    def _go_on(self, produced: list[int], steps: int, target: Target, evidence, prompt: Prompt) -> None:  # type: ignore[no-untyped-def]
        """Greedy decoding one token at a time, until `steps` tokens are produced or one ends the sequence."""
        while len(produced) < steps and produced[-1] not in self.eos_token_ids:
            self._begin()
            logits = self._forward((produced[-1],), 1, partial(self._take, replace(target, question_span=None), 1))
            self._check_finite(prompt, logits)
            produced.append(int(logits[-1].argmax()))
            for name, layers in self._evidence.items():
                if layers:
                    evidence[name].append(torch.stack(layers))

    def _ask_nothing(self, prompt: Prompt, target: Target, evidence: dict[str, list[torch.Tensor]]) -> None:
        """Read the null question behind the same context, up to its end, and add the evidence of its rows."""
        if prompt.null is None:
            raise ValueError(f"the prompt of {prompt.trial_id} was built without a null question")
        span = prompt.null.question_span
        ids = prompt.null.input_ids[: span.end]
        kept = 0 if self._is_moving else min(_common(ids, prompt.input_ids), span.start)
        self._crop(kept)
        if self._is_moving:
            self._forget_length()
        self._begin()
        null = replace(target, question_span=Span(0, len(span)))
        logits = self._forward(ids[kept:], len(span), partial(self._take, null, 0))
        self._check_finite(prompt, logits)
        for e in self._on_needles:
            if rows_of(e) == QUESTION:
                evidence[e.name].append(torch.stack(self._evidence[e.name]))

    def _read(self, prompt: Reading) -> Measured:
        """A text that is read twice: the evidence of all rows behind the first copy, in blocks."""
        readers: list[Any] = [e for e in self.estimators if prompts_of(e) == prompt.kind]
        target, span = Target.of(prompt), prompt.again_span
        self._crop(0)
        if self._is_moving:
            self._forget_length()
        size = len(span) if self._is_moving else min(READING_ROWS, self.prefill_chunk)
        begin, foretold = span.start, 0
        gathered: dict[str, torch.Tensor] = {}
        while begin < span.end:
            end = min(begin + size, span.end)
            self._begin()
            tokens = prompt.input_ids[self._cache.get_seq_length() : end]
            with stage(PREFILL):
                logits = self._forward(tokens, end - begin, partial(self._take_reading, readers, target))
                self._check_finite(prompt, logits)
            said = logits.argmax(-1).tolist()
            foretold += sum(a == b for a, b in zip(said, prompt.input_ids[begin + 1 : end + 1], strict=False))
            with stage(SCORING):
                self._merge(readers, gathered)
            begin = end
        with stage(SCORING):
            scores = {e.name: e.trial_scores(self._of_all(gathered[e.name]), target, ()).cpu() for e in readers}
        self._crop(0)
        return Measured((), scores, copied=foretold / max(1, len(prompt.input_ids) - 1 - span.start))

    def _merge(self, readers: Sequence[ReadingEstimator], gathered: dict[str, torch.Tensor]) -> None:
        """Add the evidence of the block that was just read."""
        for reader in readers:
            block = torch.stack(self._evidence[reader.name])
            before = gathered.get(reader.name)
            gathered[reader.name] = block if before is None else reader.merge(before, block)

    # -- rows -------------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Forget the evidence of the pass before."""
        self._evidence = {e.name: [] for e in self.estimators}
        self._finite = []

    def _take(self, target: Target, steps: int, rows: AttentionRows) -> None:
        """Evidence from a pass whose last `steps` rows are steps, and whose first are those of the question."""
        self._check_rows(rows)
        asked = 0 if target.question_span is None else len(target.question_span)
        parts = {ANSWER: rows.last(steps) if steps else None, QUESTION: rows.first(asked) if asked else None}
        with stage(SCORING):
            for estimator in self._on_needles:
                part = parts[rows_of(estimator)]
                if part is not None:
                    self._evidence[estimator.name].append(estimator.evidence(part, target).to(self.model.device))

    def _take_reading(self, readers: Sequence[Estimator], target: Target, rows: AttentionRows) -> None:
        """Evidence from a block of a text that is read twice."""
        self._check_rows(rows)
        with stage(SCORING):
            for reader in readers:
                self._evidence[reader.name].append(reader.evidence(rows, target).to(self.model.device))

    def _of_all(self, evidence: torch.Tensor) -> torch.Tensor:
        """Evidence `[L, H, ...]` of all heads, where this process has some of them."""
        return evidence if self._spread is None else self._spread.gathered(evidence, 1)

    def _check_rows(self, rows: AttentionRows) -> None:
        parts = 1 if self._spread is None else self._spread.size
        found, heads = rows.weights.shape[0] * parts, self._config.num_attention_heads
        if found != heads:
            raise ModelError(
                f"layer {rows.layer} of {type(self.model).__name__} has {found} heads, its config says {heads}"
            )
        finite = rows.weights.sum().isfinite()  # NaN and infinity survive a sum of weights in [0, 1]
        self._finite.append(finite.to(self.model.device))

    def _check_finite(self, prompt: AnyPrompt, logits: torch.Tensor) -> None:
        """Layers are named by the attention that first shows it: what breaks the last one shows in the logits alone."""
        *layers, answer = torch.stack([*self._finite, usable(logits).all()]).tolist()
        if all(layers) and answer:
            return
        where = "the logits" if all(layers) else f"the attention of layer {layers.index(False)}"
        raise non_finite(self.model, f"NaN or infinity in {where} in trial {prompt.trial_id}")

    # -- passes through the model -----------------------------------------------------------------------------------

    def _forward(self, tokens: tuple[int, ...], rows: int, take: Consumer) -> torch.Tensor:
        """Logits `[rows, vocabulary]` of the last `rows` tokens, whose attention rows go to `take`."""
        head = 0 if self._is_moving else max(0, len(tokens) - max(self.prefill_chunk, rows))
        self._prefill(tokens[:head])
        with wanted_rows(rows, take):
            logits = self._pass(tokens[head:], rows)
        layers = self._config.num_hidden_layers
        if len(self._finite) != layers:
            raise ModelError(
                f"{len(self._finite)} of {layers} layers of {type(self.model).__name__} could be read: the others have "
                "no attention, or not by transformers' interface"
            )
        return logits

    def _extend(self, prefix: tuple[int, ...]) -> None:
        """Compute what the cache still lacks of `prefix`: nothing, unless memory ran out and it was dropped."""
        with stage(PREFILL):
            self._prefill(prefix[self._cache.get_seq_length() :])

    def _prefill(self, tokens: tuple[int, ...]) -> None:
        for start in range(0, len(tokens), self.prefill_chunk):
            self._pass(tokens[start : start + self.prefill_chunk], 1)

    @torch.inference_mode()
    def _pass(self, tokens: tuple[int, ...], keep: int) -> torch.Tensor:
        ids = torch.tensor([tokens], device=self.model.device)
        out = self.model(input_ids=ids, **with_cache(self.model, self._cache), use_cache=True, logits_to_keep=keep)
        return out.logits[0, -keep:]

    def _forget_length(self) -> None:
        """Let "dynamic" frequencies begin anew: a pass below the original length sets them back."""
        self._pass((0,), 1)
        self._crop(0)

    def _crop(self, length: int) -> None:
        surplus = self._cache.get_seq_length() - length
        if surplus > 0:
            self._cache.crop(-surplus)


def prefix_order(prompts: Sequence[AnyPrompt]) -> tuple[list[int], list[int]]:
    """The order in which prompts share most, and how many tokens each shares with the haystack prefix.

    The prefix is that of the prompt with the deepest insertion point; at least the last prompt token is never shared,
    since its query is the first row. Texts that are read twice share nothing and come last.
    """
    needles = [(i, p) for i, p in enumerate(prompts) if isinstance(p, Prompt)]
    _, deepest = max(needles, key=lambda found: found[1].needle_span.start, default=(0, None))
    prefix = () if deepest is None else deepest.input_ids[: deepest.needle_span.start]
    shared = {i: min(_common(p.input_ids, prefix), len(p.input_ids) - 1) for i, p in needles}
    order = sorted(range(len(prompts)), key=lambda i: (i not in shared, -shared.get(i, 0), i))
    return order, [shared.get(i, 0) for i in order]


def _before_question(prompt: AnyPrompt) -> int:
    """How many tokens stand before the question, whose rows are wanted; 0 where nothing is asked."""
    return prompt.question_span.start if isinstance(prompt, Prompt) else 0


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common start of two token lists."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[:middle] == b[:middle]:
            low = middle
        else:
            high = middle - 1
    return low

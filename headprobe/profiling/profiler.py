"""Run prompts through a model and score its heads, sharing the prefix that the prompts have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from headprobe.attention.rows import AttentionRows, row_capture, wanted_rows
from headprobe.errors import DeviceMemoryError, ModelError
from headprobe.models.config import moving_rope
from headprobe.models.devices import is_out_of_memory
from headprobe.models.finite import non_finite, usable
from headprobe.models.releases import with_cache
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators.estimator import Estimator, Target

# A cache whose end can be dropped and written anew: the shared prefix of many prompts, kept in place.
#
# Buffers are allocated once for the longest prompt; adding tokens writes behind those that are there, and dropping
# them only moves the end. transformers' own dynamic cache copies everything it holds whenever a token is added.


class PrefixLayer(CacheLayerMixin):
    """Keys and values of one layer, `[B, G, capacity, d]`, of which the first `length` positions are in use."""

    is_sliding = False
    is_croppable = True

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity, self.length = capacity, 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocate the buffers."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.keys = key_states.new_empty(*key_states.shape[:2], self.capacity, key_states.shape[-1])
        self.values = value_states.new_empty(*value_states.shape[:2], self.capacity, value_states.shape[-1])
        self.is_initialized = True

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
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

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
    """A cache for at most `capacity` tokens of one sequence, in all `num_layers` layers."""

    def __init__(self, num_layers: int, capacity: int) -> None:
        super().__init__(layers=[PrefixLayer(capacity) for _ in range(num_layers)])


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

MIN_PREFILL_CHUNK = 256
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Measured:
    """What one trial gave: the produced tokens and, per estimator name, the scores `[L, H]` (float64)."""

    produced: tuple[int, ...]
    scores: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Skipped:
    """A trial that did not fit on the device even in the smallest pieces."""

    reason: str


class Profiler:
    """Measures prompts on one model with one or more estimators.

    `prefill_chunk`: most tokens that go through the model at a time; halved when the device runs out of memory,
    down to 256, after which the trial is skipped.
    """

    def __init__(
        self, model: Any, estimators: Sequence[Estimator], eos_token_ids: set[int], *, prefill_chunk: int = 8192
    ) -> None:
        self.model, self._config = model, model.config.get_text_config(decoder=True)
        self.estimators = tuple(estimators)
        self.eos_token_ids = eos_token_ids
        self.prefill_chunk = prefill_chunk
        self._is_moving = moving_rope(model) is not None
        self._longest = 0
        self._cache = self._new_cache()
        self._evidence: dict[str, list[torch.Tensor]] = {}
        self._finite: list[torch.Tensor] = []

    def measure(
        self, prompts: Sequence[Prompt], done: Collection[str] = ()
    ) -> Generator[tuple[Prompt, Measured | Skipped]]:
        """Yield each prompt whose trial is not in `done` with what it gave, in the order that shares most.

        Raises `NonFiniteError` naming trial and layer at NaN or infinity (in the logits of the answer, or in attention
        on the way to them), `DeviceMemoryError` when nothing fits.
        """
        order, shared = prefix_order(prompts)
        if self._is_moving:
            shared = [0] * len(prompts)
        if all(prompts[i].trial_id in done for i in order):
            return
        fitted = bool(done)
        self._longest = max(len(p.input_ids) + len(p.answer_ids) for p in prompts)
        self._cache = self._new_cache()
        with row_capture(self.model):
            prefix = prompts[order[0]].input_ids[: shared[0]]
            self._fit(lambda: self._extend(prefix), len(prefix))
            for index, length in zip(order, shared, strict=True):
                prompt = prompts[index]
                if prompt.trial_id not in done:
                    result = self._fit(partial(self._trial, prompt, length), len(prompt.input_ids))
                    fitted |= isinstance(result, Measured)
                    yield prompt, result
        if not fitted:
            raise DeviceMemoryError(
                f"no trial fits on {self.model.device}: use shorter --lengths (the shortest prompt has "
                f"{min(len(p.input_ids) for p in prompts)} tokens) or another --device or --dtype"
            )

    def _new_cache(self) -> PrefixCache:
        return PrefixCache(self._config.num_hidden_layers, self._longest)

    # -- memory -----------------------------------------------------------------------------------------------------

    def _fit(self, work: Callable[[], _Result], tokens: int) -> _Result | Skipped:
        """Do `work`; when memory runs out, again in pieces of half the size, and at the smallest give up."""
        while True:
            try:
                return work()
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside the except clause: its traceback would hold the tensors that are to be freed.
            self._cache = self._new_cache()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if self._is_moving or self.prefill_chunk <= MIN_PREFILL_CHUNK:
                return Skipped(f"out of memory on {self.model.device} at {tokens} tokens")
            self.prefill_chunk = max(MIN_PREFILL_CHUNK, self.prefill_chunk // 2)

    # -- one trial --------------------------------------------------------------------------------------------------

    def _trial(self, prompt: Prompt, shared: int) -> Measured:
        """Prompt and gold answer in one pass on top of the shared prefix, then alone from the first disagreement."""
        self._crop(shared)
        if self._is_moving:
            self._forget_length()
        self._extend(prompt.input_ids[:shared])
        target = Target(prompt.input_ids, prompt.answer_span, prompt.distractor_span)
        gold, steps = prompt.answer_ids, len(prompt.answer_ids)
        block = () if self._is_moving else gold[:-1]
        self._evidence = {e.name: [] for e in self.estimators}
        self._finite = []
        logits = self._forward(prompt.input_ids[shared:] + block, len(block) + 1, target)
        self._check_finite(prompt, logits)
        choices = logits.argmax(-1).tolist()
        last = len(block)
        agreed = next((t for t in range(last) if choices[t] != gold[t] or choices[t] in self.eos_token_ids), last)
        taken = agreed + 1
        produced = choices[:taken]
        evidence = {name: [torch.stack(layers)[..., :taken]] for name, layers in self._evidence.items()}
        if taken < steps and produced[-1] not in self.eos_token_ids:
            self._crop(len(prompt.input_ids) + agreed)
            self._go_on(produced, steps, target, evidence, prompt)
        scores = {
            e.name: e.trial_scores(torch.cat(evidence[e.name], -1), target, produced).cpu() for e in self.estimators
        }
        self._crop(shared)
        return Measured(tuple(produced), scores)

    def _go_on(self, produced: list[int], steps: int, target: Target, evidence, prompt: Prompt) -> None:  # type: ignore[no-untyped-def]
        """Greedy decoding one token at a time, until `steps` tokens are produced or one ends the sequence."""
        while len(produced) < steps and produced[-1] not in self.eos_token_ids:
            self._evidence = {e.name: [] for e in self.estimators}
            self._finite = []
            logits = self._forward((produced[-1],), 1, target)
            self._check_finite(prompt, logits)
            produced.append(int(logits[-1].argmax()))
            for name, layers in self._evidence.items():
                evidence[name].append(torch.stack(layers))

    def _take(self, rows: AttentionRows, target: Target) -> None:
        found, heads = rows.weights.shape[0], self._config.num_attention_heads
        if found != heads:
            raise ModelError(
                f"layer {rows.layer} of {type(self.model).__name__} has {found} heads, its config says {heads}"
            )
        self._finite.append(rows.weights.sum().isfinite())  # NaN and infinity survive a sum of weights in [0, 1]
        for estimator in self.estimators:
            self._evidence[estimator.name].append(estimator.evidence(rows, target))

    def _check_finite(self, prompt: Prompt, logits: torch.Tensor) -> None:
        """Layers are named by the attention that first shows it: what breaks the last one shows in the logits alone."""
        *layers, answer = torch.stack([*self._finite, usable(logits).all()]).tolist()
        if all(layers) and answer:
            return
        where = "the logits" if all(layers) else f"the attention of layer {layers.index(False)}"
        raise non_finite(self.model, f"NaN or infinity in {where} in trial {prompt.trial_id}")

    # -- passes through the model -----------------------------------------------------------------------------------

    def _forward(self, tokens: tuple[int, ...], rows: int, target: Target) -> torch.Tensor:
        """Logits `[rows, vocabulary]` of the last `rows` tokens, whose attention rows go to the estimators."""
        head = 0 if self._is_moving else max(0, len(tokens) - max(self.prefill_chunk, rows))
        self._prefill(tokens[:head])
        with wanted_rows(rows, lambda found: self._take(found, target)):
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


def prefix_order(prompts: Sequence[Prompt]) -> tuple[list[int], list[int]]:
    """The order in which prompts share most, and how many tokens each shares with the haystack prefix.

    The prefix is that of the prompt with the deepest insertion point; at least the last prompt token is never shared,
    since its query is the first row.
    """
    deepest = max(range(len(prompts)), key=lambda i: prompts[i].needle_span.start)
    prefix = prompts[deepest].input_ids[: prompts[deepest].needle_span.start]
    shared = [min(_common(p.input_ids, prefix), len(p.input_ids) - 1) for p in prompts]
    order = sorted(range(len(prompts)), key=lambda i: (-shared[i], i))
    return order, [shared[i] for i in order]


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

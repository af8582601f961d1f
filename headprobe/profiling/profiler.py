"""Run prompts through a model and score its heads, sharing the prefix that the prompts have in common.

Prompts of one haystack are equal up to their insertion points. They are taken in order of falling insertion point:
the haystack up to the deepest one is computed once, and every prompt starts from the part of it that it shares, by
cropping the cache back. What a trial computes does not depend on which trials ran before it, so a resumed run
gives the same bytes. The gold answer goes in together with the prompt: as far as the model's own greedy choice
agrees with it, those rows are exactly the rows of step-by-step decoding; from the first disagreement on the model
goes on alone.

Where rotary frequencies change with the length of a pass, nothing is shared, and a prompt is read in one pass and
answered step by step, as the model would do by itself.

All methods that look at needles share one pass; for rows of the question it is only looked at from there on, and a
null question is read in a short pass of its own, on the same context. Texts that are read twice are taken behind the
needles, in blocks, and all methods that look at one kind of text share its passes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from headprobe.attention.rows import AttentionRows, Consumer, row_capture
from headprobe.errors import DeviceMemoryError, ModelError
from headprobe.models.finite import non_finite, usable
from headprobe.models.placement import head_spread
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
from headprobe.profiling.passes import Passes, Skipped
from headprobe.profiling.prefix import common_start, prefix_order
from headprobe.profiling.steps import step_rule
from headprobe.spans import Span
from headprobe.stages import DECODE, PREFILL, SCORING, stage

READING_ROWS = 128  # rows per block of a text that is read twice: its logits are as wide as the vocabulary


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


class Profiler:
    """Measures prompts on one model with one or more estimators.

    `prefill_chunk`: most tokens that go through the model at a time, fewer where memory runs out (`Passes`).
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
        self.passes, self._window, self._reads_on = Passes(model, prefill_chunk), window, reads_on
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
        if self.passes.is_moving:
            shared = [0] * len(prompts)
        if self._on_question:
            shared = [min(n, _before_question(prompts[i])) for i, n in zip(order, shared, strict=True)]
        if all(prompts[i].trial_id in done for i in order):
            return
        fitted = bool(done)
        self.passes.begin(max(len(p.input_ids) + self._limits(p)[1] for p in prompts))
        with row_capture(self.model):
            prefix = prompts[order[0]].input_ids[: shared[0]]
            self.passes.fit(lambda: self.passes.extend(prefix), len(prefix))
            for index, length in zip(order, shared, strict=True):
                prompt = prompts[index]
                if prompt.trial_id not in done:
                    work = (
                        partial(self._read, prompt)
                        if isinstance(prompt, Reading)
                        else partial(self._trial, prompt, length)
                    )
                    result = self.passes.fit(work, len(prompt.input_ids))
                    fitted |= isinstance(result, Measured)
                    yield prompt, result
        if not fitted:
            raise DeviceMemoryError(
                f"no trial fits on {self.model.device}: use shorter --lengths (the shortest prompt has "
                f"{min(len(p.input_ids) for p in prompts)} tokens) or another --device or --dtype"
            )

    # -- one trial --------------------------------------------------------------------------------------------------

    def _limits(self, prompt: AnyPrompt) -> tuple[int, int]:
        """How many tokens of a trial are scored at most, and how many are read."""
        answer, used = len(prompt.answer_ids), len(prompt.input_ids)
        room = max(0, self._window - used) if self._window is not None else 2**31
        return self._steps.scored(answer, room), self._steps.read(answer, room)

    def _trial(self, prompt: Prompt, shared: int) -> Measured:
        """Prompt and gold answer in one pass on top of the shared prefix, then alone from the first disagreement."""
        self.passes.begin_trial(shared)
        self.passes.extend(prompt.input_ids[:shared])
        target = self._target(prompt)
        gold, (steps, most) = prompt.answer_ids, self._limits(prompt)
        block = () if self.passes.is_moving else gold[: min(len(gold), steps) - 1]
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
            self.passes.back_to(len(prompt.input_ids) + agreed)
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
        self.passes.back_to(shared)
        return Measured(tuple(produced), scores, read_on)

    def _read_on(self, prompt: Prompt, produced: Sequence[int], most: int) -> tuple[int, ...]:
        """What the model says next, up to `most` tokens in all; nothing where it has ended or need not be read on."""
        said = list(produced)
        if said[-1] in self.eos_token_ids or self._reads_on is None or not self._reads_on(prompt, produced):
            return ()
        self.passes.back_to(len(prompt.input_ids) + len(said) - 1)
        while len(said) < most and said[-1] not in self.eos_token_ids:
            logits = self.passes.run((said[-1],), 1)
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
        kept = 0 if self.passes.is_moving else min(common_start(ids, prompt.input_ids), span.start)
        self.passes.begin_trial(kept)
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
        self.passes.begin_trial(0)
        size = len(span) if self.passes.is_moving else min(READING_ROWS, self.passes.chunk)
        begin, foretold = span.start, 0
        gathered: dict[str, torch.Tensor] = {}
        while begin < span.end:
            end = min(begin + size, span.end)
            self._begin()
            tokens = prompt.input_ids[self.passes.cache.get_seq_length() : end]
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
        self.passes.back_to(0)
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

    def _forward(self, tokens: tuple[int, ...], rows: int, take: Consumer) -> torch.Tensor:
        """Logits `[rows, vocabulary]` of the last `rows` tokens, whose attention rows, of every layer, go to `take`."""
        logits = self.passes.run_with_rows(tokens, rows, take)
        layers = self._config.num_hidden_layers
        if len(self._finite) != layers:
            raise ModelError(
                f"{len(self._finite)} of {layers} layers of {type(self.model).__name__} could be read: the others have "
                "no attention, or not by transformers' interface"
            )
        return logits

    def _check_finite(self, prompt: AnyPrompt, logits: torch.Tensor) -> None:
        """Layers are named by the attention that first shows it: what breaks the last one shows in the logits alone."""
        *layers, answer = torch.stack([*self._finite, usable(logits).all()]).tolist()
        if all(layers) and answer:
            return
        where = "the logits" if all(layers) else f"the attention of layer {layers.index(False)}"
        raise non_finite(self.model, f"NaN or infinity in {where} in trial {prompt.trial_id}")


def _before_question(prompt: AnyPrompt) -> int:
    """How many tokens stand before the question, whose rows are wanted; 0 where nothing is asked."""
    return prompt.question_span.start if isinstance(prompt, Prompt) else 0

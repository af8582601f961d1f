"""What head sets are measured on: needles, and plain text that needs no retrieval; and curves over orders of heads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any, Protocol

from headprobe.errors import NoPassingTrialError, OptionError, PlanError
from headprobe.evaluation.knockout.ablated_runs import AblatedRuns, Said, most_read, sets_per_batch
from headprobe.evaluation.knockout.switched_off import MASK, MEAN, HeadSet, check_mode, mean_outputs
from headprobe.events import PLAN, TRIAL, emit
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import answered_share, exact_match, token_f1
from headprobe.probes.encoding import encode
from headprobe.probes.haystack import PARAGRAPH_BREAK, load_haystack
from headprobe.probes.needle import Needle
from headprobe.probes.plan import check_number
from headprobe.probes.prompt import Prompt
from headprobe.profiling.estimators.estimator import ANSWERED_GATE
from headprobe.profiling.job import ScoreJob, ScoreOptions, prepare
from headprobe.scores.head_scores import Floats
from headprobe.spans import Span

DEFAULT_LENGTH = 1024
DEFAULT_NEEDLES = "retrieval"
MOST_DRAWS, MOST_BATCH = 1000, 1024
NUM_TEXTS, NUM_REFERENCE, TEXT_TOKENS = 8, 4, 256
GATE = ANSWERED_GATE  # of all scores, so that what counts as answered here is what counts there
WHOLE: HeadSet = ()
NEEDLES, TEXT = "needles", "text"  # what records are of
METRICS = ("answered", "exact_match", "answer_f1", "answer_loss", "text_loss")
Record = dict[str, Any]


@dataclass(frozen=True)
class KnockoutOptions:
    """How heads are switched off, and on what that is measured.

    `mode`: `mask`, `zero` or `mean` (see `switched_off`); `top`: how many of the best heads, several numbers (None: 1,
    2, 5, 10, 20, 50, cut at all heads); `draws`: sets of as many other heads; `needles`: a set's name or file (None:
    that of the score file where it is shipped, else `retrieval`); `lengths` in tokens (None: 1,024, or the window where
    that is smaller); `depths`, `needles_per_cell`, `haystack`, `limit`, `chat` as in `ScoreOptions`; `seed`: needles,
    haystack's beginning and draws, 1 by default, so that prompts are others than those a score stands on; `batch`: head
    sets that go through a prompt together (None: as many as fit, at most 16).
    """

    mode: str = MASK
    top: tuple[int, ...] | None = None
    draws: int = 5
    needles: str | None = None
    lengths: tuple[int, ...] | None = None
    depths: int = 10
    needles_per_cell: int = 3
    haystack: str = "all"
    seed: int = 1
    limit: int | None = None
    chat: bool = True
    batch: int | None = None

    def __post_init__(self) -> None:
        check_mode(self.mode)
        if self.draws < 1:
            raise OptionError(f"--draws is {self.draws}, need at least 1 (5 or more for a fair comparison)")
        check_number(self.draws, "draws", MOST_DRAWS)
        if self.batch is not None and not 1 <= self.batch <= MOST_BATCH:
            raise OptionError(f"--batch is {self.batch}, need 1 to {MOST_BATCH}")
        if self.limit is not None and self.limit < 1:
            raise OptionError(f"the limit must be at least 1 trial, got {self.limit}")
        self.score_options(DEFAULT_LENGTH)  # refuses what no scoring run could have either

    def score_options(self, window: int) -> ScoreOptions:
        """The prompts, as a scoring run would have them."""
        return ScoreOptions(
            needles=DEFAULT_NEEDLES if self.needles is None else self.needles,
            haystack=self.haystack,
            lengths=(min(DEFAULT_LENGTH, window),) if self.lengths is None else self.lengths,
            depths=self.depths,
            needles_per_cell=self.needles_per_cell,
            seed=self.seed,
            limit=self.limit,
            chat=self.chat,
        )


class Records(Protocol):
    """Where finished work is kept: a `Journal`, or memory."""

    @property
    def records(self) -> Mapping[str, Record]:
        """Finished work by its `trial`."""

    def add(self, record: Record) -> None:
        """Keep a record under its `trial`."""


class Memory:
    """Records of a run that is not to be resumed."""

    def __init__(self) -> None:
        self.records: dict[str, Record] = {}

    def add(self, record: Record) -> None:
        """Keep a record under its `trial`."""
        self.records[record["trial"]] = record


@dataclass(frozen=True)
class Outcome:
    """What a set of heads that is off leaves, each a value per prompt that the whole model answers, `text_loss` one per
    text.

    `answered` and `exact_match` are 0 or 1, `answer_f1` in [0, 1]; `answer_loss` (of the gold answer; None where it
    cannot be had) and `text_loss` (None on a bench without texts) in nats per token.
    """

    answered: tuple[float, ...]
    exact_match: tuple[float, ...]
    answer_f1: tuple[float, ...]
    answer_loss: tuple[float, ...] | None
    text_loss: tuple[float, ...] | None

    def mean(self, metric: str) -> float | None:
        """The mean of one of `METRICS`."""
        values = getattr(self, metric)
        return None if values is None else fmean(values)


@dataclass(frozen=True, eq=False)
class Measured:
    """The outcome of each set of heads, by the sorted set (`()` is the whole model), over `prompts`: those that the
    whole model answers."""

    prompts: tuple[Prompt, ...]
    outcomes: Mapping[HeadSet, Outcome]


@dataclass(frozen=True, eq=False)
class KnockoutBench:
    """Prompts and texts for one model and mode. Make one with `build`; `measure` takes any number of head sets.

    An answer counts by the gate of scoring: the response, read on up to twice the gold answer's tokens where it has not
    answered by then, has most of the words that decide.

    Only prompts that the model answers with all its heads on are asked again: the others have nothing to lose.
    """

    loaded: LoadedModel
    options: KnockoutOptions
    job: ScoreJob
    texts: tuple[tuple[int, ...], ...]
    reference: tuple[tuple[int, ...], ...]
    batch: int

    @classmethod
    def build(cls, loaded: LoadedModel, options: KnockoutOptions, *, with_texts: bool = True) -> KnockoutBench:
        """Prompts and texts; without texts, which `mean` needs, what heads do beside retrieval stays unknown.

        Raises `OptionError`, `PlanError` and `FileFormatError` before the model runs.
        """
        job = prepare(loaded, options.score_options(loaded.window))
        longest = max(len(p.input_ids) + most_read(loaded, p) for p in job.needle_prompts)
        batch = sets_per_batch(loaded, longest) if options.batch is None else options.batch
        if not with_texts and options.mode != MEAN:
            return cls(loaded, options, job, (), (), batch)
        texts = plain_texts(loaded, NUM_TEXTS + NUM_REFERENCE)
        step = len(texts) // NUM_REFERENCE
        kept = tuple(text for i, text in enumerate(texts) if i % step != step - 1)
        return cls(loaded, options, job, kept, tuple(texts[step - 1 :: step]), batch)

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All needles' prompts."""
        return self.job.needle_prompts

    @cached_property
    def needles(self) -> dict[str, Needle]:
        """By trial id the needle in it."""
        return {spec.id: spec.needle for spec in self.job.plan.trials()}

    def clusters(self, prompts: Sequence[Prompt]) -> list[str]:
        """For each prompt what it is drawn with: its needle."""
        return [self.needles[prompt.trial_id].id for prompt in prompts]

    @property
    def hidden(self) -> Span | None:
        """What `mask` hides in plain text: as many tokens as the answers have, a quarter of the way in."""
        if not self.texts:
            return None
        tokens = len(self.texts[0])
        length = round(fmean(len(prompt.answer_span) for prompt in self.prompts))
        return Span(tokens // 4, min(tokens // 4 + length, tokens // 2))

    @cached_property
    def means(self) -> Floats | None:
        """Mean outputs of the heads on the reference texts, `[L, H, d_v]`, for the mode that wants them."""
        return mean_outputs(self.loaded.model, self.reference) if self.options.mode == MEAN else None

    def batches(self, sets: Iterable[HeadSet]) -> list[tuple[HeadSet, ...]]:
        """The different sets in batches; the model with all its heads comes first and alone."""
        others = [heads for heads in dict.fromkeys(tuple(sorted(heads)) for heads in sets) if heads]
        parts = [tuple(others[start : start + self.batch]) for start in range(0, len(others), self.batch)]
        return [(WHOLE,), *parts]

    def records_due(self, sets: Iterable[HeadSet], records: Mapping[str, Record] | None = None) -> list[str]:
        """The ids of all records of a run, in their order of work. As long as `records` do not show which prompts the
        whole model answers, these are all prompts."""
        answered = self.answered(records or {})
        due = []
        for number in range(len(self.batches(sets))):
            asked = answered if number and answered is not None else self.prompts
            due += [needle_record(number, prompt.trial_id) for prompt in asked]
            due += [text_record(number, text) for text in range(len(self.texts))]
        return due

    def answered(self, records: Mapping[str, Record]) -> tuple[Prompt, ...] | None:
        """The prompts that the whole model answers; None where `records` do not hold all of its answers."""
        rows = [records.get(needle_record(0, prompt.trial_id)) for prompt in self.prompts]
        if None in rows:
            return None
        pairs = zip(self.prompts, rows, strict=True)
        return tuple(prompt for prompt, row in pairs if row is not None and row["rows"][0]["answered"])

    def describe(self, sets: Sequence[HeadSet]) -> dict[str, Any]:
        """All that decides what the records hold: a journal belongs to exactly this."""
        given = self.job.description(self.loaded)
        names = ("plan", "limit", "prompts_sha256", "model")
        return {
            "evaluation": "knockout",
            "mode": self.options.mode,
            "heads_switched_off": _digest(self.batches(sets)),
            "plain_texts": _digest([self.texts, self.reference]),
            "gate": GATE.record(),
            "batch": self.batch,
        } | {name: given[name] for name in names}

    def measure(
        self,
        sets: Sequence[HeadSet],
        journal: Records | None = None,
        on_record: Callable[[Record], None] | None = None,
    ) -> Measured:
        """The outcome of each set of `(layer, head)` query heads.

        Records that `journal` holds are not measured again; `on_record` is called behind each new one. Raises
        `NoPassingTrialError` where the whole model answers no needle: there is nothing that heads could cost then.
        """
        kept: Records = Memory() if journal is None else journal
        whole, *others = self.batches(sets)
        due = self.records_due(sets, kept.records)
        done = sum(name in kept.records for name in due)
        emit(PLAN, work="knockout", model=self.loaded.name, trials=len(due), done=done)
        self._run(0, whole, self.prompts, kept, on_record)
        prompts = self.answered(kept.records) or ()
        if not prompts:
            raise self._unanswered(kept.records)
        for number, batch in enumerate(others, 1):
            self._run(number, batch, prompts, kept, on_record)
        outcomes = {
            heads: outcome
            for number, batch in enumerate([whole, *others])
            for heads, outcome in zip(batch, self._outcomes(number, len(batch), prompts, kept.records), strict=True)
        }
        return Measured(prompts, outcomes)

    def _run(
        self,
        number: int,
        batch: Sequence[HeadSet],
        prompts: Sequence[Prompt],
        kept: Records,
        on_record: Callable[[Record], None] | None,
    ) -> None:
        runs = AblatedRuns(self.loaded, batch, self.options.mode, self.means, self._reads_on)
        done = {prompt.trial_id for prompt in prompts if needle_record(number, prompt.trial_id) in kept.records}
        for prompt, said in runs.answers(prompts, done):
            rows = [self._row(prompt, each) for each in said]
            _keep(kept, {"trial": needle_record(number, prompt.trial_id), "rows": rows}, on_record)
        heard = {i for i in range(len(self.texts)) if text_record(number, i) in kept.records}
        for text, losses in runs.losses(self.texts, self.hidden, heard):
            _keep(kept, {"trial": text_record(number, text), "losses": losses}, on_record)

    def _reads_on(self, prompt: Prompt, produced: Sequence[int]) -> bool:
        return not self.is_answered(prompt, self.text_of(produced))

    def is_answered(self, prompt: Prompt, response: str) -> bool:
        """Whether a response counts as an answer, by the gate of scoring."""
        return answered_share(response, self.needles[prompt.trial_id], GATE.threshold) > GATE.threshold

    def text_of(self, tokens: Sequence[int]) -> str:
        """What tokens of a response say."""
        return str(self.loaded.tokenizer.decode(list(tokens), skip_special_tokens=True)).strip()

    def _row(self, prompt: Prompt, said: Said) -> Record:
        """`exact_match` and `answer_f1` go by as many tokens as the gold answer has, the gate by all that were read."""
        response, first = self.text_of((*said.tokens, *said.read_on)), self.text_of(said.tokens)
        answer = self.needles[prompt.trial_id].answer
        return {
            "response": response,
            "answered": self.is_answered(prompt, response),
            "exact_match": exact_match(first, answer),
            "answer_f1": token_f1(first, answer),
            "answer_loss": said.loss,
        }

    def _outcomes(
        self, number: int, count: int, prompts: Sequence[Prompt], records: Mapping[str, Record]
    ) -> list[Outcome]:
        rows = [records[needle_record(number, prompt.trial_id)]["rows"] for prompt in prompts]
        texts = [records[text_record(number, text)]["losses"] for text in range(len(self.texts))]
        made = []
        for place in range(count):
            columns = {name: tuple(row[place][name] for row in rows) for name in METRICS[:4]}
            losses = None if None in columns["answer_loss"] else columns["answer_loss"]
            plain = {name: tuple(map(float, columns[name])) for name in METRICS[:3]}
            heard = tuple(row[place] for row in texts) or None
            made.append(Outcome(**plain, answer_loss=losses, text_loss=heard))
        return made

    def _unanswered(self, records: Mapping[str, Record]) -> NoPassingTrialError:
        rows = [records[needle_record(0, prompt.trial_id)]["rows"][0]["response"] for prompt in self.prompts[:3]]
        return NoPassingTrialError(
            f"the model answers none of {len(self.prompts)} prompts with all its heads on, so that switching heads off "
            f"can cost nothing; it said: {'; '.join(repr(said[:80]) for said in rows)}"
        )


# -- plain text -----------------------------------------------------------------------------------------------------


def plain_texts(loaded: LoadedModel, count: int) -> list[tuple[int, ...]]:
    """`count` stretches of the shipped haystacks as token ids, of up to 256 tokens each, spread evenly over them.

    Raises `PlanError` for a window or tokenizer that leaves too little of them.
    """
    paragraphs = load_haystack("all").paragraphs
    tokens = min(TEXT_TOKENS, loaded.window)
    texts = []
    for number in range(count):
        text = PARAGRAPH_BREAK.join(paragraphs[len(paragraphs) * number // count :])[: 20 * tokens]
        texts.append(tuple(encode(loaded.tokenizer, text).ids[:tokens]))
    if min(map(len, texts)) < 16:
        raise PlanError(f"plain texts of {min(map(len, texts))} tokens are too short to measure a loss on, need 16")
    shortest = min(map(len, texts))
    return [text[:shortest] for text in texts]


def needle_record(batch: int, trial: str) -> str:
    """The id of the record of one prompt under one batch of sets."""
    return f"{NEEDLES}|{batch}|{trial}"


def text_record(batch: int, text: int) -> str:
    """The id of the record of one plain text under one batch of sets."""
    return f"{TEXT}|{batch}|{text}"


def record_kind(name: str) -> tuple[str, int]:
    """Of a record's id what was asked, and the number of its batch.

    >>> record_kind(needle_record(2, "retrieval-01@512@0")), record_kind(text_record(0, 7))
    (('needles', 2), ('text', 0))
    """
    kind, batch, _ = name.split("|", 2)
    return kind, int(batch)


def _keep(kept: Records, record: Record, on_record: Callable[[Record], None] | None) -> None:
    kept.add(record)
    emit(TRIAL, trial=record["trial"])
    if on_record is not None:
        on_record(record)


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]

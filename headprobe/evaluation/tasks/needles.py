"""Needles in haystacks as a task among others; `headprobe eval needles` alone has the whole grid of lengths and depths.

The same prompts, measured by whether the answer begins with the needle's sentence, word for word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

from headprobe.evaluation.questions import context_end
from headprobe.evaluation.task import TaskQuestion, TaskRequest, TaskSet
from headprobe.models.loading import LoadedModel
from headprobe.probes.encoding import resolve_template
from headprobe.profiling.job import ScoreOptions, prepare

NEEDLE_SETS = ("reasoning", "retrieval", "nonliteral")
DEPTHS = 10
MOST_ANSWER_TOKENS = 64  # an upper end for tables; each prompt's own answer decides


@dataclass(frozen=True)
class NeedlesTask:
    """Shipped needle sets at ten depths of each length (`--lengths`; the whole window else).

    One needle at each depth, or as many as `--limit` needs.
    """

    name: str = "needles"
    about: str = "sentences hidden in prose, and the question about them; alone it is `headprobe eval needles`"
    source: str = "headprobe's own needles and haystacks (Apache-2.0)"
    sets: tuple[str, ...] = NEEDLE_SETS

    def load(self, asked: TaskRequest) -> list[TaskSet]:
        """The sets; prompts are made for the model."""
        wanted = asked.sets(self.sets, self.name, ("reasoning",))
        return [
            TaskSet(f"needles:{name}", "exact_match", MOST_ANSWER_TOKENS, partial(_questions, name, asked))
            for name in wanted
        ]


def _questions(name: str, asked: TaskRequest, loaded: LoadedModel) -> Sequence[TaskQuestion]:
    lengths = asked.lengths or (loaded.window,)
    options = ScoreOptions(
        needles=name, haystack=asked.haystack, lengths=lengths, depths=DEPTHS, seed=asked.seed, limit=asked.limit,
        needles_per_cell=max(1, ceil((asked.limit or 0) / (DEPTHS * len(lengths)))), chat=asked.chat,
    )  # fmt: skip
    job = prepare(loaded, options)
    specs = {spec.id: spec for spec in job.plan.trials()}
    template = resolve_template(loaded.tokenizer, job.plan.template, job.plan.chat)
    return [
        TaskQuestion(
            id=f"needles:{name}/{prompt.trial_id}",
            context="",
            answers=(specs[prompt.trial_id].needle.answer,),
            max_new_tokens=len(prompt.answer_ids),
            cluster=specs[prompt.trial_id].needle.id,
            input_ids=tuple(prompt.input_ids),
            context_tokens=context_end(loaded, prompt, template),
        )
        for prompt in job.needle_prompts
    ]


NEEDLES = NeedlesTask()

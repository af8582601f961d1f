"""One trial of a needle grid: a prompt answered on a cache that one policy compressed to one budget."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from headprobe.compression.generation import Generation, generate
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.session import compress
from headprobe.errors import DeviceMemoryError, NonFiniteError
from headprobe.evaluation.variants import Variant
from headprobe.models.loading import LoadedModel
from headprobe.probes.answer import chosen_sentence, exact_match, token_f1
from headprobe.probes.plan import TrialSpec
from headprobe.probes.prompt import Prompt

Row = dict[str, Any]
MEASURED = (
    "response", "exact_match", "answer_f1", "chose", "new_tokens", "kv_entries", "kv_entries_asked", "kv_bytes",
    "kv_bytes_asked", "full_kv_bytes", "peak_bytes", "ttft_s", "s_per_token", "kernel",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class GridTrial:
    """A prompt, a variant, and the budget in mean entries per KV head (None: `full`, which has none).

    `context_tokens`: tokens that are compressed before the question is seen; None where it is seen.
    """

    spec: TrialSpec
    prompt: Prompt
    variant: Variant
    budget: int | None
    context_tokens: int | None = None

    @property
    def id(self) -> str:
        """Unique in a grid: `reasoning-09@256@0|snapkv|64`."""
        return f"{self.prompt.trial_id}|{self.variant.name}|{'-' if self.budget is None else self.budget}"

    def head(self) -> Row:
        """The fields of its row that are known before it runs."""
        return {
            "trial": self.id,
            "prompt": self.prompt.trial_id,
            "needle": self.spec.needle.id,
            "length": self.spec.length,
            "depth": self.spec.depth,
            "depth_reached": self.prompt.depth_reached,
            "prompt_tokens": len(self.prompt.input_ids),
            "context_tokens": self.context_tokens,
            "policy": self.variant.policy.name,
            "scores": self.variant.source,
            "budget": self.budget,
            "query_agnostic": self.context_tokens is not None,
        }


def run_trial(
    loaded: LoadedModel, trial: GridTrial, eos: Collection[int], *, seed: int = 0, gqa: str = "mean", **options: Any
) -> Row:
    """The trial's row. Where memory runs out, everything that was to be measured is None and `error` says why.

    The answer may be as long as the gold answer, as in scoring. Slack is what the new tokens take, so that the bytes
    held are not those of room that stays empty. `options` go to `compress` (`attention`, `prefill_chunk`). Raises
    `NonFiniteError`, which names the trial, at NaN or infinity in the logits.
    """
    prompt, variant = trial.prompt, trial.variant
    new_tokens = len(prompt.answer_ids)
    read_later = 0 if trial.context_tokens is None else len(prompt.input_ids) - trial.context_tokens
    scores = variant.scores_for(prompt.trial_id, seed, loaded.geometry)
    try:
        with compress(
            loaded.model, variant.policy, budget=trial.budget, scores=scores, gqa=gqa,
            slack=new_tokens + read_later, **options,
        ) as session:  # fmt: skip
            made = generate(
                session, prompt.input_ids, max_new_tokens=new_tokens, eos_token_ids=eos,
                context_tokens=trial.context_tokens,
            )  # fmt: skip
            assert session.cache is not None
            asked = asked_entries(session.cache, trial.budget, trial.context_tokens or len(prompt.input_ids))
            per_entry = entry_bytes(session.cache)
    except NonFiniteError as error:
        raise NonFiniteError(f"trial {trial.id}: {error}") from error
    except DeviceMemoryError as error:
        return trial.head() | dict.fromkeys(MEASURED) | {"error": str(error)}
    return trial.head() | _answer(loaded, trial, made) | _cost(made, asked, per_entry) | {"error": None}


def asked_entries(cache: RaggedCache, budget: int | None, tokens: int) -> int:
    """Entries that the budget allows for `tokens` tokens, over all layers and KV heads that are compressed."""
    each = tokens if budget is None else min(budget, tokens)
    return each * cache.plan.num_layers * cache.plan.num_kv_heads


def entry_bytes(cache: RaggedCache) -> int:
    """Bytes of one entry of one KV head: its key and its value."""
    store = cache.ragged_layers[0].store
    assert store is not None
    return int((store.keys.shape[1] + store.values.shape[1]) * store.keys.element_size())


def _answer(loaded: LoadedModel, trial: GridTrial, made: Generation) -> Row:
    needle = trial.spec.needle
    response = str(loaded.tokenizer.decode(list(made.tokens), skip_special_tokens=True)).strip()
    return {
        "response": response,
        "exact_match": exact_match(response, needle.answer),
        "answer_f1": token_f1(response, needle.answer),
        "chose": chosen_sentence(response, needle),
        "new_tokens": len(made.tokens),
    }


def _cost(made: Generation, asked: int, per_entry: int) -> Row:
    return {
        "kv_entries": made.kv_entries,
        "kv_entries_asked": asked,
        "kv_bytes": made.kv_bytes,
        "kv_bytes_asked": asked * per_entry,
        "full_kv_bytes": made.full_kv_bytes,
        "peak_bytes": made.peak_bytes,
        "ttft_s": made.ttft_s,
        "s_per_token": None if made.tokens_per_s is None else 1.0 / made.tokens_per_s,
        "kernel": made.kernel,
    }

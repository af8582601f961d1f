"""lm-evaluation-harness on a compressed cache: the model class `headprobe`, known to it once this module is imported.

    python -c "import headprobe.evaluation.harness; from lm_eval.__main__ import cli_evaluate; cli_evaluate()" run \\
        --model headprobe --model_args pretrained=demo,policy=headkv-r2,budget=128 --tasks ...

Answers are generated in a compressed session. A given continuation is scored behind its context: the context is read
and compressed, then the continuation goes through the model on that cache. So its first token comes from the reading
itself, as the first token of an answer does, and continuations of one token (the letter of a choice) are scored alike
under every policy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from headprobe.compression.decoding import run_step
from headprobe.compression.kv_cache_dtypes import AUTO
from headprobe.compression.policies import DEFAULT_POLICY, make_policy
from headprobe.compression.session import CompressionSession, compress
from headprobe.errors import OptionError
from headprobe.evaluation.known_scores import known_scores, with_recommended_window
from headprobe.home import in_home
from headprobe.models.loading import LoadedModel, load_model
from headprobe.models.releases import with_cache
from headprobe.scores.any_scores import AnyScores

CACHE_KEY = "headprobe"  # under which a request cache says whose answers it holds


@dataclass(frozen=True)
class HarnessOptions:
    """How the cache is compressed: the fields are names of `--model_args`, with the meaning they have in `compress`.

    `scores`: a file, for policies that need scores (None: found as `headprobe compress` finds them); `window`, `pool`,
    `beta`, `sinks`: changes to the policy (None: what the model recommends, else the policy's own).
    """

    policy: str = DEFAULT_POLICY
    budget: int | None = None
    ratio: float | None = None
    scores: str | None = None
    gqa: str = "mean"
    attention: str = "auto"
    prefill_chunk: int | None = None
    window: int | None = None
    pool: int | None = None
    beta: float | None = None
    sinks: int | None = None
    kv_cache_dtype: str = AUTO

    @classmethod
    def names(cls) -> set[str]:
        """Which arguments are ours; all others go to the harness."""
        return {field.name for field in fields(cls)}


@register_model("headprobe")
class CompressedLM(HFLM):
    """The harness's transformers model, answering from a compressed cache.

    `pretrained`: alias, folder or hub id, as in `--model`, or what `load_model` gives; `given`: fields of
    `HarnessOptions`, and arguments of `HFLM` such as `max_length`. Raises what `load_model` and `compress` raise.
    """

    def __init__(
        self,
        pretrained: str | LoadedModel = "demo",
        device: str | None = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        **given: Any,
    ) -> None:
        if str(batch_size).startswith("auto"):
            raise OptionError(f"batch_size is {batch_size}: a compressed cache wants a number")
        ours = {name: given.pop(name) for name in HarnessOptions.names() & set(given)}
        loaded = load_model(pretrained, device or "auto", dtype) if isinstance(pretrained, str) else pretrained
        self.options = HarnessOptions(**ours)
        self.compression = _Compression.of(loaded, self.options)
        super().__init__(
            pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=int(batch_size),
            **{"max_length": loaded.window, **given},
        )  # fmt: skip
        self.pretrained = loaded.source

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take the harness's cache of requests, which must hold answers of this model, policy and budget.

        Its keys know nothing of either. Raises `OptionError` for the cache of another.
        """
        answers = getattr(cache_hook, "dbdict", None)
        if answers is not None:
            own, known = self.compression.fingerprint, answers.get(CACHE_KEY)
            if known != own and len(answers):
                whose = "something else" if known is None else "another model, policy or budget"
                raise OptionError(f"the request cache holds answers of {whose}: name another with use_cache")
            answers[CACHE_KEY] = own
        super().set_cache_hook(cache_hook)

    def _model_generate(self, context: Any, max_length: int, stop: Any, **generation_kwargs: Any) -> Any:
        """As `HFLM` does, with a compressed session in the place of the model."""
        with self.compression.session() as session:
            model: Any = self._model
            self._model: Any = _Generating(model, session)
            try:
                return super()._model_generate(context, max_length, stop, **generation_kwargs)
            finally:
                self._model = model

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Of each request `(key, context, continuation)` the sum of log-probabilities, and whether it is greedy."""
        found = []
        with self.compression.session() as session:
            for key, context, continuation in requests:
                whole = (context + continuation)[-(self.max_length + 1) :]
                cut = len(whole) - len(continuation)
                answer = likelihood(session, whole[:cut], continuation)
                found.append(answer)
                if key is not None:
                    self.cache_hook.add_partial("loglikelihood", key, answer)
        return found

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        """Refused unless nothing is evicted: a whole text has no context that could be compressed before it."""
        if not self.compression.keeps_all:
            raise OptionError(
                f"perplexity of whole texts says nothing about {self.options.policy}: there is no context to compress "
                "before the text is scored"
            )
        return super().loglikelihood_rolling(requests, disable_tqdm)


@torch.inference_mode()
def likelihood(session: CompressionSession, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
    """The log-probability of `continuation` behind `context`, which is read and compressed first; and whether each of
    its tokens is the most likely one.

    Policies that evict while decoding see one token after another, as they would when it was generated.
    """
    model, cache = session.model, session.new_cache()
    device = model.device
    logits = [run_step(model, cache, torch.tensor([list(context)], device=device)).float()]
    rest = torch.tensor([list(continuation[:-1])], device=device)
    size = 1 if session.plan.policy.evicts_while_decoding else max(1, rest.shape[1])
    for block in rest.split(size, dim=1) if rest.shape[1] else ():
        start = cache.tokens_seen
        positions = torch.arange(start, start + block.shape[1], device=device)[None]
        out = model(input_ids=block, position_ids=positions, **with_cache(model, cache), use_cache=True)
        logits.append(out.logits[0].float())
    rows = torch.cat(logits).log_softmax(-1)
    wanted = torch.tensor(list(continuation), device=device)
    greedy = bool((rows.argmax(-1) == wanted).all())
    return float(rows.gather(1, wanted[:, None]).sum()), greedy


class _Generating:
    """A model whose `generate` is that of a compressed session."""

    def __init__(self, model: Any, session: CompressionSession) -> None:
        self._model, self._session = model, session

    def generate(self, **options: Any) -> Any:
        options.pop("use_cache", None)
        return self._session.generate(**options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


@dataclass(frozen=True, eq=False)
class _Compression:
    """How `loaded` runs: the keywords of `compress`, and a hash of all that decides its answers."""

    loaded: LoadedModel
    keywords: dict[str, Any]
    fingerprint: str

    @classmethod
    def of(cls, loaded: LoadedModel, options: HarnessOptions) -> _Compression:
        changes = {name: getattr(options, name) for name in ("window", "pool", "beta", "sinks")}
        policy = make_policy(options.policy, **changes)
        policy = with_recommended_window(loaded, policy, options.window, options.pool)
        scores, _ = known_scores(loaded, policy, None if options.scores is None else in_home(Path(options.scores)))
        keywords: dict[str, Any] = {
            "policy": policy, "scores": scores, "gqa": options.gqa, "attention": options.attention,
            "prefill_chunk": options.prefill_chunk, "kv_cache_dtype": options.kv_cache_dtype,
        }  # fmt: skip
        if not policy.keeps_all:
            keywords |= {"budget": options.budget, "ratio": options.ratio}
        made = cls(loaded, keywords, _fingerprint(loaded, options, repr(policy), scores))
        with made.session():  # which refuses what cannot be
            return made

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is ever evicted."""
        return bool(self.keywords["policy"].keeps_all)

    @contextmanager
    def session(self) -> Iterator[CompressionSession]:
        """The model inside `compress`."""
        with compress(self.loaded.model, **self.keywords) as session:
            yield session


def _fingerprint(loaded: LoadedModel, options: HarnessOptions, policy: str, scores: AnyScores | None) -> str:
    parts = (
        loaded.config_sha256, loaded.weights_sha256, loaded.dtype, policy, options.budget, options.ratio, options.gqa,
        None if scores is None else scores.sha256,
        *(() if options.kv_cache_dtype == AUTO else (options.kv_cache_dtype,)),
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()

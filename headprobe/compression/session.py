"""`with compress(model, ...) as session`: a model runs on a compressed cache, unmodified and restored afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from transformers import GenerationConfig

from headprobe.attention.masks import Masks
from headprobe.attention.tap import LayerCall, is_tapped_by, tapped
from headprobe.compression.budgets import Floats
from headprobe.compression.chunks import check_chunk, layers_in_chunks
from headprobe.compression.kernels.choice import (
    Kernel,
    KernelNeeds,
    capability,
    check_kernel_name,
    check_kernel_reads,
    device_name,
    pick_kernel,
)
from headprobe.compression.kv_cache_dtypes import AUTO, check_kv_cache_dtype, check_kv_cache_dtypes
from headprobe.compression.policies import DEFAULT_POLICY, CompressionPlan, Policy, make_policy
from headprobe.compression.ragged_cache import DEFAULT_SLACK, RaggedCache, handed_out
from headprobe.compression.refusals import GivenPrompt, check_options, num_copies
from headprobe.errors import ModelError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.finite import watched_generate
from headprobe.models.placement import check_spread, head_spread
from headprobe.models.releases import generating_with, given_cache
from headprobe.scores.any_scores import AnyScores, check_gqa, read_any, reduce_to_kv
from headprobe.scores.head_scores import HeadScores

# Turns of a conversation: a later one must go on with what was read, and every pass of the model is written down.


def check_turn(cache: RaggedCache, prompt: GivenPrompt) -> None:
    """Raise `OptionError` unless `prompt` continues what `cache` has read, with the same padding."""
    if cache.is_empty and not cache.conversation.is_torn:
        return
    cache.conversation.check(None if prompt.is_embedded else prompt.ids, cache.tokens_seen, cache.pads)
    assert prompt.ids is not None
    if prompt.mask is not None:
        cache.check_turn(prompt.mask, len(prompt.ids), prompt.ids.shape[1] - cache.tokens_seen)
    elif any(cache.pads):
        raise OptionError("the conversation began with padded prompts: a later turn needs an attention_mask")


@contextmanager
def followed(model: Any) -> Iterator[None]:
    """Let compressed caches hear which tokens `model` is about to read, and refuse pads that they cannot leave out.

    So a cache knows its conversation however the model was called: by `generate` or directly.
    """
    decoder = model.get_decoder()
    hooks = [
        decoder.register_forward_pre_hook(_before, with_kwargs=True),
        decoder.register_forward_hook(_after, with_kwargs=True),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    cache = given_cache(kwargs)
    ids = kwargs.get("input_ids", args[0] if args else None)
    prompt = kwargs.get("inputs_embeds") if ids is None else ids
    if not isinstance(cache, RaggedCache) or prompt is None:
        return
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    if isinstance(mask, dict):  # one for each kind of layer, all made from the same
        mask = next(iter(mask.values()), None)
    cache.check_turn(mask, *prompt.shape[:2])
    cache.conversation.begin(prompt, cache.tokens_seen)


def _after(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    cache = given_cache(kwargs)
    if isinstance(cache, RaggedCache):
        cache.conversation.end()


Scores = HeadScores | AnyScores | Path | str


class CompressionSession:
    """A model inside `compress(...)`. `cache` belongs to the conversation that is going on, None before the first turn.

    `plan` is the policy with its budget, `kernel` the attention kernel and `kernel_reason` why it was taken.
    """

    def __init__(
        self,
        model: Any,
        plan: CompressionPlan,
        kernel: Kernel,
        reason: str,
        *,
        slack: int,
        keep_positions: bool,
        kv_cache_dtype: str = AUTO,
    ) -> None:
        self.model, self.plan, self.kernel, self.kernel_reason = model, plan, kernel, reason
        self._slack, self._keep_positions, self._kv_cache_dtype = slack, keep_positions, kv_cache_dtype
        self.cache: RaggedCache | None = None

    def new_cache(self) -> RaggedCache:
        """An empty cache for a new batch of prompts; it becomes `cache`."""
        config = self.model.config.get_text_config(decoder=True)
        self.cache = RaggedCache(
            config, self.plan, self.kernel, self._slack, self._keep_positions, self._kv_cache_dtype
        )
        return self.cache

    def reset(self) -> None:
        """Forget the conversation."""
        self.cache = None

    def generate(
        self, inputs: torch.Tensor | None = None, generation_config: GenerationConfig | None = None, **options: Any
    ) -> Any:
        """`model.generate(...)` on the compressed cache; all its options, and its result.

        Called again with all tokens so far, produced ones included, and new ones after them, it continues the
        conversation; `reset()` begins a new one. A call that ends in an error leaves the conversation as it was, unless
        the model was reading: then what was read belongs to it, or only `reset()` helps.

        Raises `OptionError` for a prompt that does not continue the conversation, for pads anywhere but before the
        prompts, and for what a compressed cache cannot do (`generate_options` lists it); `NonFiniteError` at NaN or
        infinity in the logits.
        """
        check_options(self.model, generation_config, options)
        prompt = GivenPrompt.of(inputs, options, num_copies(self.model, generation_config, options))
        if self.cache is not None:
            check_turn(self.cache, prompt)
        before, cache = self.cache, self.new_cache() if self.cache is None else self.cache
        try:
            with _mode_of(cache):
                given = {"generation_config": generation_config, **generating_with(cache), **options}
                result = watched_generate(self.model, inputs, **given)
        finally:
            if not cache.conversation.passes:
                self.cache = before
        if not prompt.is_embedded:
            cache.conversation.settle(getattr(result, "sequences", result), cache.tokens_seen)
        return result


@dataclass(frozen=True)
class Serving:
    """How a compressed cache is served; nothing here changes what is kept of the prompt.

    `attention`: the kernel, see `kernels.choice.KERNELS`. `prefill_chunk`: tokens that go through a layer at a time
    (None: the whole prompt); the layers take turns, so that one layer's full keys and values are held. `slack`: entries
    of room that each head gets beyond its own. `keep_positions`: the cache says which positions were kept.
    `kv_cache_dtype`: how the kept entries are held, "auto" (as the model computes them), "int8" or "int4" with scales
    of their own; the one thing here that changes numbers.
    """

    attention: str = "auto"
    prefill_chunk: int | None = None
    slack: int = DEFAULT_SLACK
    keep_positions: bool = False
    kv_cache_dtype: str = AUTO

    def __post_init__(self) -> None:
        check_kv_cache_dtype(self.kv_cache_dtype)
        check_kernel_reads(self.attention, self.kv_cache_dtype)


class ServingOptions(TypedDict, total=False):
    """The fields of `Serving` as keywords."""

    attention: str
    prefill_chunk: int | None
    slack: int
    keep_positions: bool
    kv_cache_dtype: str


@contextmanager
def compress(
    model: Any,
    policy: str | Policy = DEFAULT_POLICY,
    *,
    budget: int | None = None,
    ratio: float | None = None,
    scores: Scores | None = None,
    gqa: str = "mean",
    **serving: Unpack[ServingOptions],
) -> Iterator[CompressionSession]:
    """Run `model` (a transformers causal decoder, or what `load_model` gives) on a compressed KV cache in this block.

    `budget`: mean entries per KV head, window and sinks included, or `ratio` of the prompt; `scores`: head scores or
    their file, for policies that need them, brought from query to KV heads by `gqa` ("mean" or "max"). How the cache is
    served (`Serving`: kernel, chunks, room) changes no result, unless its entries are quantized (`kv_cache_dtype`). The
    model's own attention is restored when the block ends, however it ends.

    Raises `OptionError` (policy, budget, scores, kernel), `ModelError` (a model whose attention can't be compressed).

        with headprobe.compress(model, "headkv-r2", budget=128, scores="scores/demo--r2.json") as session:
            session.generate(**tokenizer(text, return_tensors="pt"), max_new_tokens=32)
            session.cache.lengths, session.cache.nbytes
    """
    how = Serving(**serving)
    model = bare_model(model)
    plan = make_plan(model, policy, budget=budget, ratio=ratio, scores=scores, gqa=gqa)
    kernel, reason = pick_kernel(how.attention, kernel_needs(model, plan.policy, how.kv_cache_dtype))
    session = CompressionSession(
        model, plan, kernel, reason, slack=how.slack, keep_positions=how.keep_positions,
        kv_cache_dtype=how.kv_cache_dtype,
    )  # fmt: skip
    with on_ragged_caches(model, how.prefill_chunk):
        yield session


def bare_model(model: Any) -> Any:
    """The transformers model itself, where what `load_model` gives may stand for it."""
    return getattr(model, "model", model) if hasattr(model, "tokenizer") else model


@contextmanager
def on_ragged_caches(model: Any, prefill_chunk: int | None = None) -> Iterator[None]:
    """Inside the block `model` runs on compressed caches, which hear what it reads; afterwards it is as before."""
    with ExitStack() as stack:
        stack.enter_context(_ragged_attention(model))
        stack.enter_context(followed(model))
        if prefill_chunk is not None:
            stack.enter_context(layers_in_chunks(model, prefill_chunk))
        yield


def check_serving(
    attention: str, gqa: str, prefill_chunk: int | None, kv_cache_dtypes: Sequence[str] = (AUTO,)
) -> None:
    """Raise `OptionError` for what `compress` takes with no model: an unknown kernel, `gqa` or number format, a kernel
    that reads no such entries, a chunk below 1."""
    check_kernel_name(attention)
    check_kv_cache_dtypes(kv_cache_dtypes)
    for kv_cache_dtype in kv_cache_dtypes:
        check_kernel_reads(attention, kv_cache_dtype)
    check_gqa(gqa)
    if prefill_chunk is not None:
        check_chunk(prefill_chunk)


def make_plan(
    model: Any,
    policy: str | Policy,
    *,
    budget: int | None = None,
    ratio: float | None = None,
    scores: Scores | None = None,
    gqa: str = "mean",
) -> CompressionPlan:
    """The plan for `model`. Raises `OptionError` and `ModelError` as `compress`."""
    config = model.config.get_text_config(decoder=True)
    geometry = ModelGeometry.from_config(config)
    layers = geometry.full_attention_layers
    if getattr(config, "kv_lora_rank", None) is not None:
        raise ModelError(
            f"{type(model).__name__} caches a latent from which all heads' keys and values are made (kv_lora_rank "
            f"{config.kv_lora_rank}): there is nothing that could be evicted by head"
        )
    if getattr(config, "num_kv_shared_layers", None):
        raise ModelError(
            f"{config.num_kv_shared_layers} layers of {type(model).__name__} use the keys and values of other layers, "
            "which a compressed cache does not know"
        )
    if "chunked_attention" in geometry.layer_types:
        raise ModelError(f"{type(model).__name__} has chunked-attention layers, which a compressed cache does not know")
    if not layers:
        raise ModelError(f"{type(model).__name__} has no full-attention layer: there is nothing to compress")
    chosen = policy if isinstance(policy, Policy) else make_policy(policy)
    table = None
    if scores is not None and chosen.needs_scores:
        table = kv_head_scores(scores, geometry, gqa)[list(layers)]
    spread = head_spread(model)
    if spread is not None:
        check_spread(geometry, spread.size)
    return CompressionPlan(chosen, len(layers), geometry.num_key_value_heads, budget, ratio, table, spread)


def kv_head_scores(scores: Scores, geometry: ModelGeometry, gqa: str = "mean") -> Floats:
    """Non-negative scores `[L, G]` for a model of this geometry: of query heads, joined by `gqa`, or of KV heads.

    Raises `OptionError` for scores of another geometry.
    """
    given = read_any(scores) if isinstance(scores, Path | str) else scores
    heads = "query" if isinstance(given, HeadScores) else given.heads
    groups = geometry.num_key_value_heads
    if given.mean.shape != (geometry.shape if heads == "query" else (geometry.num_hidden_layers, groups)):
        raise OptionError(
            f"the scores are for {given.mean.shape[0]} layers of {given.mean.shape[1]} "
            f"{'query' if heads == 'query' else 'KV'} heads, the model has {geometry.num_hidden_layers} of "
            f"{geometry.num_attention_heads} query and {groups} KV heads"
        )
    table = reduce_to_kv(given.mean, groups, gqa) if heads == "query" else given.mean
    return table.clip(min=0.0)


def on_kv_heads(scores: AnyScores, geometry: ModelGeometry, gqa: str = "mean") -> AnyScores:
    """The scores as those of the model's KV heads, see `kv_head_scores`: settled once, so that nothing behind asks how
    query heads are joined. Raises as it does."""
    table = kv_head_scores(scores, geometry, gqa)
    return replace(scores, mean=table, heads="kv", trial_scores=None, native=None)


def kernel_needs(model: Any, policy: Policy, kv_cache_dtype: str = AUTO) -> KernelNeeds:
    """What `model`, `policy` and a cache of such entries ask of an attention kernel, by the config; what the stores
    hold takes precedence."""
    config = model.config.get_text_config(decoder=True)
    width = ModelGeometry.from_config(config).head_dim
    return KernelNeeds(
        device=model.device.type,
        dtype=str(model.dtype).removeprefix("torch."),
        head_dim=width,
        softcap=getattr(config, "attn_logit_softcapping", None) is not None,
        sinks=any(name.endswith(".sinks") for name, _ in model.named_parameters()),
        bias=policy.compensates,
        weights=policy.evicts_while_decoding,
        device_name=device_name(model.device),
        value_dim=getattr(config, "v_head_dim", None) or width,
        capability=capability(model.device),
        kv_cache_dtype=kv_cache_dtype,
    )


def _mode_of(cache: RaggedCache) -> AbstractContextManager[Any]:
    """Inference mode where the cache was filled in it: its tensors can be written to in no other."""
    filled = any(store.tables[0].is_inference() for store in cache.stores)
    return torch.inference_mode() if filled else nullcontext()


# -- the model's attention ------------------------------------------------------------------------------------------


@contextmanager
def _ragged_attention(model: Any) -> Iterator[None]:
    """Let `model` attend by its compressed cache; put its own attention back afterwards, with nothing left pending."""
    try:
        with tapped(model, _attend, masks=Masks.PADDING, once=False, consequence=": its cache can't be compressed"):
            yield
    finally:
        handed_out.set(None)


def attends_by_caches(model: Any) -> bool:
    """Whether `model` is in a compression session now, and no other function has its attention."""
    return is_tapped_by(model, _attend)


def _attend(call: LayerCall) -> torch.Tensor:
    """The output of a layer whose keys and values the cache has just taken."""
    handed = handed_out.get()
    if handed is None:
        raise ModelError(f"layer {call.layer} of {call.model_name} runs without a compressed cache: take session.cache")
    return handed.attend(call)

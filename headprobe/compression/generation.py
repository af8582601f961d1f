"""An answer on a compressed cache, and what it took."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.ragged_cache import RaggedCache
from headprobe.compression.session import CompressionSession
from headprobe.errors import DeviceMemoryError, OptionError
from headprobe.models.memory import PeakMemory, is_out_of_memory


@dataclass(frozen=True)
class Generation:
    """What was produced for one prompt.

    `tokens`: the answer, an end-of-sequence token included; `lengths` `[L][G]`: entries that each KV head held when the
    prompt had been read; `kv_entries` their sum, `kv_bytes` the storage held then (slack and uncompressed layers
    included), `full_kv_bytes` what all keys and values of the prompt would take. `ttft_s`: seconds to the first token;
    `tokens_per_s`: of those behind the first, None when there is none. `peak_bytes`: memory beyond the model's, None
    where the system does not tell.
    """

    tokens: tuple[int, ...]
    prompt_tokens: int
    lengths: tuple[tuple[int, ...], ...]
    kv_entries: int
    kv_bytes: int
    full_kv_bytes: int
    peak_bytes: int | None
    ttft_s: float
    tokens_per_s: float | None
    kernel: str
    used_graph: bool = False


def generate(
    session: CompressionSession,
    input_ids: Sequence[int],
    *,
    max_new_tokens: int = 64,
    eos_token_ids: Collection[int] = (),
    context_tokens: int | None = None,
    graphs: bool = True,
) -> Generation:
    """The greedy answer to `input_ids` on a fresh cache of `session`.

    `context_tokens`: so many tokens are read and compressed before the rest (the question) is seen, as a cache does
    that is to serve several questions; the rest is then added to it. Raises `OptionError` for an empty prompt or no
    token to produce, `DeviceMemoryError` when memory runs out.
    """
    _check(input_ids, max_new_tokens, context_tokens)
    try:
        return _generate(session, input_ids, max_new_tokens, set(eos_token_ids), context_tokens, graphs)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
    raise DeviceMemoryError(_what_fits(session.model, len(input_ids)))


@torch.inference_mode()
def _generate(session, input_ids, max_new_tokens, eos, context_tokens, graphs):  # type: ignore[no-untyped-def]
    model, device = session.model, session.model.device
    peak = PeakMemory(device)
    peak.start()
    started = time.perf_counter()
    cache = session.new_cache()
    ids = torch.tensor([list(input_ids)], device=device)
    cut = ids.shape[1] if context_tokens is None else context_tokens
    logits = run_step(model, cache, ids[:, :cut])
    lengths, kv_bytes = cache.lengths[:, 0], cache.nbytes
    if cut < ids.shape[1]:
        logits = run_step(model, cache, ids[:, cut:])
    produced = [int(logits[0].argmax())]
    first = time.perf_counter()
    decoder = Decoder(model, cache, graphs=graphs)
    while len(produced) < max_new_tokens and produced[-1] not in eos:
        logits = decoder.step(torch.tensor(produced[-1:], device=device))
        produced.append(int(logits[0].argmax()))
    seconds = time.perf_counter() - first
    return Generation(
        tokens=tuple(produced),
        prompt_tokens=len(input_ids),
        lengths=tuple(tuple(int(x) for x in layer) for layer in lengths),
        kv_entries=int(lengths.sum()),
        kv_bytes=kv_bytes,
        full_kv_bytes=full_kv_bytes(cache, cut),
        peak_bytes=peak.bytes(),
        ttft_s=first - started,
        tokens_per_s=(len(produced) - 1) / seconds if len(produced) > 1 else None,
        kernel=session.kernel.name,
        used_graph=decoder.uses_graph,
    )


def full_kv_bytes(cache: RaggedCache, tokens: int) -> int:
    """Bytes that keys and values of so many tokens take when nothing is evicted, in all layers of `cache`."""
    layers = cache.ragged_layers
    per_token = sum(
        layer.store.num_segments * (layer.store.keys.shape[1] + layer.store.values.shape[1])
        * layer.store.keys.element_size()
        for layer in layers if layer.store is not None
    )  # fmt: skip
    others = sum(getattr(layer, "nbytes", 0) for layer in cache.layers if layer not in layers)
    return per_token * tokens + others


def _check(input_ids: Sequence[int], max_new_tokens: int, context_tokens: int | None) -> None:
    if not input_ids:
        raise OptionError("the prompt is empty: need at least one token")
    if max_new_tokens < 1:
        raise OptionError(f"{max_new_tokens} new tokens are too few, need at least 1")
    if context_tokens is not None and not 0 < context_tokens <= len(input_ids):
        raise OptionError(f"a context of {context_tokens} tokens for a prompt of {len(input_ids)}")


def _what_fits(model: Any, tokens: int) -> str:
    device = model.device
    room = ""
    if device.type == "cuda":
        room = f" ({torch.cuda.mem_get_info(device)[0] / 2**30:.1f} GiB are free)"
    return (
        f"{tokens} tokens do not fit on {device}{room}: take --prefill-chunk 2048 or less, a shorter prompt, or "
        f"--dtype bfloat16"
    )

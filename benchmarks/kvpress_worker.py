"""One side of `benchmarks.kvpress`: a process that loads the model once, then measures what it is asked to.

It runs in either environment: `headprobe` is imported on its own side only, `kvpress` on the other only. Requests and
answers are lines of JSON on stdin and stdout.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM

# Since transformers 5.24 the cache goes by another name; the two sides run on releases of both kinds.
CACHE_NAME = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"


class Headprobe:
    """Our side: policies by name, with random head scores for those that need some."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model, self.seed = model, seed

    @contextmanager
    def conversation(self, request: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        """A cache for one conversation, and the context in which its prompt is to be read."""
        from headprobe.compression.policies import make_policy
        from headprobe.compression.session import compress

        policy = make_policy(request["policy"], window=request["window"], pool=request["pool"])
        scores = random_scores(self.model, self.seed) if policy.needs_scores else None
        with compress(self.model, policy, budget=request["entries"], scores=scores) as session:
            yield session.new_cache(), nullcontext()

    def entries(self, cache: Any) -> tuple[int, int]:
        """Entries of all KV heads and layers: held, and seen by attention."""
        held = int(cache.lengths.sum())
        return held, held

    def beside(self) -> list[Any]:
        """What is held outside the cache: nothing."""
        return []


class KVPress:
    """The other side: `snapkv`, and `adakv` on top of it."""

    def __init__(self, model: Any, seed: int) -> None:
        self.model = model

    @contextmanager
    def conversation(self, request: dict[str, Any]) -> Iterator[tuple[Any, Any]]:
        """A cache for one conversation, and the context in which its prompt is to be read (with the press)."""
        from kvpress import AdaKVPress, SnapKVPress
        from transformers import DynamicCache

        press = SnapKVPress(request["ratio"], request["window"], request["pool"])
        try:
            yield DynamicCache(), (AdaKVPress(press) if request["policy"] == "adakv" else press)(self.model)
        finally:
            for layer in self.model.model.layers:
                layer.self_attn.masked_key_indices = None

    def entries(self, cache: Any) -> tuple[int, int]:
        """Entries of all KV heads and layers: held, and seen by attention (AdaKV masks the others)."""
        held = dense_entries(cache)
        return held, held - sum(len(indices[0]) for indices in self.beside() if indices is not None)

    def beside(self) -> list[Any]:
        """What is held outside the cache: AdaKV's lists of masked keys, one a layer."""
        return [getattr(layer.self_attn, "masked_key_indices", None) for layer in self.model.model.layers]


def dense_entries(cache: Any) -> int:
    """Entries of all KV heads and layers of a transformers cache."""
    return sum(layer.keys.shape[1] * layer.keys.shape[2] for layer in cache.layers)


SIDES = {"headprobe": Headprobe, "kvpress": KVPress}


def random_scores(model: Any, seed: int) -> Any:
    """One passing trial of random scores, a few heads far above the others, as real ones are."""
    import numpy as np

    from headprobe.geometry import ModelGeometry
    from headprobe.scores.head_scores import HeadScores, Method, Trial
    from headprobe.scores.provenance import ModelIdentity, Provenance

    geometry = ModelGeometry.from_config(model.config)
    table = np.random.default_rng(seed).gamma(0.3, size=geometry.shape)
    trial = Trial("random", "random", 1, 0.0, True, 1.0, "", 1, table)
    return HeadScores(geometry, Method("r2", "", 1, {}), (trial,), Provenance(ModelIdentity("random")))


# -- bytes ----------------------------------------------------------------------------------------------------------


def held_bytes(*roots: Any) -> dict[str, int]:
    """Bytes of all tensors reached from `roots`: `kv_bytes` (attributes `keys` and `values`) and `other_bytes`.

    Counted by storage, each once: a view holds all of the storage behind it.
    """
    kv: dict[int, int] = {}
    other: dict[int, int] = {}
    for name, tensor in _tensors(roots, "", set()):
        storage = tensor.untyped_storage()
        (kv if name in ("keys", "values") else other)[storage.data_ptr()] = storage.nbytes()
    return {"kv_bytes": sum(kv.values()), "other_bytes": sum(size for at, size in other.items() if at not in kv)}


def _tensors(item: Any, name: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    """All tensors in `item`, its parts and theirs, with the name of the attribute they were found in."""
    if isinstance(item, torch.Tensor):
        yield name, item
        return
    if id(item) in seen or isinstance(item, torch.nn.Module | type):
        return
    seen.add(id(item))
    if isinstance(item, dict):
        parts = [(name, value) for value in item.values()]
    elif isinstance(item, list | tuple | set):
        parts = [(name, value) for value in item]
    else:
        parts = list(getattr(item, "__dict__", {}).items())
    for part, value in parts:
        yield from _tensors(value, part, seen)


def start_peak() -> int:
    """Give freed memory back, forget the highest use so far; today's use in bytes, or 0 where Linux is not below us."""
    gc.collect()
    if not Path("/proc/self/clear_refs").exists():
        return 0
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_since(before: int) -> int:
    """Bytes by which the highest use since `start_peak` exceeds what was used then."""
    return _status("VmHWM") - before


def _status(name: str) -> int:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:")), 0)


# -- measuring ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def measure(side: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Read `prompt` of the `tokens`, then `decode` more, one at a time; policy None is the model as it is.

    Gives times in seconds, bytes and entries held when the prompt has been read, bytes held at the end, and the last
    token's `logits` where asked for.
    """
    ids, prompt = torch.tensor([request["tokens"]]), request["prompt"]
    before = start_peak()
    with _conversation(side, request) as (cache, reading):
        begin = time.perf_counter()
        with reading:
            step(side.model, cache, ids, 0, prompt)
        found = {"prefill_s": time.perf_counter() - begin, "prefill_peak_bytes": peak_since(before)}
        held, seen = side.entries(cache) if request["policy"] else (dense_entries(cache),) * 2
        found |= {"entries_held": held, "entries_seen": seen, **held_bytes(cache, side.beside())}
        steps = []
        for position in range(prompt, prompt + request["decode"]):
            begin = time.perf_counter()
            logits = step(side.model, cache, ids, position, position + 1)
            steps.append(time.perf_counter() - begin)
        end = held_bytes(cache, side.beside())
    found |= {"decode_s_per_token": statistics.median(steps), "decode_fastest_step_s": min(steps)}
    found |= {f"end_{name}": size for name, size in end.items()}
    return {**found, "logits": logits[0, -1].tolist()} if request.get("logits") else found


def _conversation(side: Any, request: dict[str, Any]) -> Any:
    if request["policy"] is not None:
        return side.conversation(request)
    from transformers import DynamicCache

    return nullcontext((DynamicCache(), nullcontext()))


def step(model: Any, cache: Any, ids: torch.Tensor, start: int, end: int) -> torch.Tensor:
    """Run the tokens `start` to `end` at their own positions; the last one's logits."""
    positions = torch.arange(start, end)[None]
    named = {CACHE_NAME: cache}
    given = model(input_ids=ids[:, start:end], position_ids=positions, **named, use_cache=True, logits_to_keep=1)
    return given.logits


# -- the process ----------------------------------------------------------------------------------------------------


def versions(name: str) -> dict[str, Any]:
    """What this side runs on."""
    found = {"python": sys.version.split()[0], "threads": torch.get_num_threads()}
    for package in ("torch", "transformers", *(("kvpress",) if name == "kvpress" else ())):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def main(name: str, folder: str, seed: int) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between the answers
    from transformers import LlamaForCausalLM

    if name == "kvpress":
        import kvpress  # noqa: F401  # it wraps attention functions when it is imported
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    side = SIDES[name](model, seed)
    for request in _requests():
        answer = measure(side, request) if request else versions(name)
        if name == "kvpress" and "headprobe" in sys.modules:
            raise RuntimeError("headprobe was imported on kvpress's side")
        print(json.dumps(answer), file=answers, flush=True)


def _requests() -> Iterator[dict[str, Any]]:
    """An empty request, which asks for versions; then those that come in."""
    yield {}
    for line in iter(sys.stdin.readline, ""):
        yield json.loads(line)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))

"""What a bench measures: a loaded model, or a shape with random weights, and the policies with their head scores."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from headprobe._version import __version__
from headprobe.compression.budgets import Floats
from headprobe.compression.policies import Policy
from headprobe.compression.session import kv_head_scores, make_plan
from headprobe.errors import DeviceMemoryError
from headprobe.evaluation.costs.shapes import ModelShape, uneven_scores
from headprobe.evaluation.variants import variants
from headprobe.geometry import ModelGeometry
from headprobe.models.catalog import short_name
from headprobe.models.devices import free_bytes, is_out_of_memory, pick_dtype
from headprobe.models.loading import LoadedModel
from headprobe.scores.any_scores import AnyScores, read_any


@dataclass(frozen=True, eq=False)
class Contender:
    """A policy with the scores `[L, G]` of the compressed layers' KV heads that it takes, None for none.

    `source`: where they come from, in words; `remark`: what is not quite right with them.
    """

    policy: Policy
    table: Floats | None = None
    source: str | None = None
    remark: str | None = None


@dataclass(frozen=True, eq=False)
class Subject:
    """The model that is measured. `is_random`: a shape with random weights; `window` in tokens, None: no limit."""

    model: Any
    name: str
    is_random: bool
    window: int | None
    contenders: tuple[Contender, ...]

    @classmethod
    def of_model(cls, loaded: LoadedModel, policies: Sequence[Policy], files: Sequence[Path], gqa: str) -> Subject:
        """A loaded model. Raises `OptionError` where a policy's scores are not there, `ModelError` as `compress`."""
        make_plan(loaded.model, "full")
        layers = list(loaded.geometry.full_attention_layers)
        found = []
        for variant in variants(loaded, policies, files, baselines=(), gqa=gqa):
            table = None if variant.scores is None else variant.scores.mean[layers]
            source = None if variant.scores is None else variant.scores.path.name
            found.append(Contender(variant.policy, table, source, variant.remark))
        return cls(loaded.model, short_name(loaded.name), False, loaded.window, tuple(found))

    @classmethod
    def of_shape(cls, shape: ModelShape, device: torch.device, dtype: str, contenders: Sequence[Contender]) -> Subject:
        """Random weights, made on the device. Raises `DeviceMemoryError` where they do not fit."""
        kind = getattr(torch, pick_dtype(dtype, device, shape.config()))
        needed, free = shape.weight_bytes(kind), free_bytes(device)
        if free is not None and needed > free:
            raise DeviceMemoryError(_too_large(shape, device, needed, f"{free / 2**30:.1f} GiB are free"))
        try:
            return cls(shape.model(device, kind), shape.name, True, None, tuple(contenders))
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        raise DeviceMemoryError(_too_large(shape, device, needed, "memory ran out"))

    @property
    def config(self) -> Any:
        """The decoder's config."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def geometry(self) -> ModelGeometry:
        """The decoder's geometry."""
        return ModelGeometry.from_config(self.config)

    @property
    def compressed_layers(self) -> int:
        """How many layers are compressed."""
        return len(self.geometry.full_attention_layers)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of a token's keys and values in all compressed layers."""
        size = torch.finfo(self.model.dtype).bits // 8
        return 2 * self.compressed_layers * self.geometry.num_key_value_heads * self.geometry.head_dim * size

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.nbytes for weight in self.model.parameters())

    @property
    def weights_read(self) -> int:
        """Bytes of weights that a decode step reads: all but the embeddings, of which it reads a row.

        Embeddings that are the output's weights too are read there.
        """
        embedding, output = self.model.get_input_embeddings(), self.model.get_output_embeddings()
        tied = output is not None and output.weight is embedding.weight
        return self.weights_bytes - (0 if tied else embedding.weight.nbytes)


def contenders_of_shape(
    shape: ModelShape, policies: Sequence[Policy], files: Sequence[Path], gqa: str, seed: int
) -> tuple[Contender, ...]:
    """The policies with scores from `files`; where none is given, with random ones, as uneven as real models' are.

    Raises `FileFormatError` for a broken file, `OptionError` for scores of another geometry.
    """
    geometry = ModelGeometry.from_config(shape.config())
    read = [read_any(path) for path in files]
    found = []
    for policy in policies:
        if not policy.needs_scores:
            found.append(Contender(policy))
            continue
        scores = _best_of(read, policy)
        if scores is None:
            random = uneven_scores(geometry.num_hidden_layers, geometry.num_key_value_heads, seed)
            remark = f"{policy.name} runs on random head scores (seed {seed}): a shape has none of its own"
            found.append(Contender(policy, random, f"random, seed {seed}", remark))
        else:
            found.append(Contender(policy, kv_head_scores(scores, geometry, gqa), scores.path.name))
    return tuple(found)


def _best_of(read: Sequence[AnyScores], policy: Policy) -> AnyScores | None:
    own = [scores for scores in read if scores.method == policy.scores]
    return next(iter([*own, *read]), None)


def _too_large(shape: ModelShape, device: torch.device, needed: int, reason: str) -> str:
    return (
        f"the weights of {shape.name} take {needed / 2**30:.1f} GiB on {device}, {reason}: take --dtype bfloat16, or "
        "a smaller --shape"
    )


# The machine: what a measurement must say of it.


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, device and threads, as plain JSON values."""
    return {
        "headprobe": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
    }


def _processor() -> str:
    cpu = Path("/proc/cpuinfo")
    try:
        lines = cpu.read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def copy_bandwidth(device: torch.device, repeats: int = 9) -> float | None:
    """Bytes that a large copy reads and writes in a second on a GPU; None on other devices."""
    if device.type != "cuda":
        return None
    size = min(4 << 30, int(torch.cuda.mem_get_info(device)[0]) // 4)
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize(device)
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return 2 * size / statistics.median(times[1:])

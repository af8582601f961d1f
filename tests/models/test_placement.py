"""Layers on several devices, as far as a CPU can show it: by accelerate's hooks, with a layer that waits on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig

from headprobe.compression.generation import generate
from headprobe.compression.session import compress
from headprobe.errors import OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.loading import load_model
from headprobe.models.placement import Placement
from headprobe.profiling.estimators import estimators
from headprobe.profiling.gathering import spread_over
from headprobe.profiling.job import ScoreOptions, prepare
from headprobe.profiling.profiler import Measured, Profiler
from headprobe.profiling.ranks import Ranks
from tests.tiny_models import build_tiny_model

pytest.importorskip("accelerate")

ON_DISK = {
    "model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "cpu",
    "model.rotary_emb": "cpu", "lm_head": "cpu",
}  # fmt: skip
PROMPT = list(range(3, 60))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_model("llama", tmp_path_factory.mktemp("placed"))


@pytest.fixture(scope="module")
def both(folder: Path) -> tuple[Any, Any]:
    """The model on one device, and with one layer on disk."""
    return load_model(str(folder), device="cpu"), load_model(str(folder), device="cpu", device_map=ON_DISK)


def test_a_layer_that_waits_elsewhere_is_fetched_and_the_weights_are_known(both: tuple[Any, Any]) -> None:
    plain, spread = both
    assert spread.model.model.layers[1].self_attn.q_proj.weight.is_meta
    assert spread.device == torch.device("cpu")
    assert spread.weights_sha256 == plain.weights_sha256
    assert spread_over(spread.model) == {"device_map": ["cpu", "disk"]}
    assert spread_over(plain.model) == {}


@pytest.mark.parametrize("policy", ["full", "ada-snapkv", "h2o"])
def test_compressed_answers_are_those_of_one_device_in_chunks_too(both: tuple[Any, Any], policy: str) -> None:
    given = [{"prefill_chunk": chunk} for chunk in (None, 16, 16)]  # a second time: chunks leave the hooks in place
    found = []
    for loaded in both:
        for more in given:
            with compress(loaded.model, policy, budget=None if policy == "full" else 16, **more) as session:
                made = generate(session, PROMPT, max_new_tokens=4)
            found.append((made.tokens, made.lengths, made.kv_bytes))
    assert len(set(found)) == 1


def test_scores_are_those_of_one_device(both: tuple[Any, Any]) -> None:
    tables = []
    for loaded in both:
        chosen = estimators(("r2", "value"))
        job = prepare(loaded, ScoreOptions(methods=("r2", "value"), lengths=(300,), depths=2, needles_per_cell=1))
        profiler = Profiler(loaded.model, chosen, set(), prefill_chunk=64, window=loaded.window)
        found = [measured for _, measured in profiler.measure(job.prompts)]
        assert all(isinstance(measured, Measured) for measured in found)
        tables.append(torch.stack([measured.scores["value"] for measured in found if isinstance(measured, Measured)]))
    assert torch.equal(*tables)


def test_auto_on_a_machine_with_one_device_is_that_device(folder: Path, both: tuple[Any, Any]) -> None:
    loaded = load_model(str(folder), device="cpu", device_map="auto")
    assert spread_over(loaded.model) == {}
    assert loaded.weights_sha256 == both[0].weights_sha256


def test_every_process_of_torchrun_would_take_all_devices() -> None:
    with pytest.raises(OptionError, match="device_map auto spreads layers over all devices, and torchrun started 4"):
        Ranks(0, 4, 0).refuse_device_map("auto")


@pytest.mark.parametrize("is_there", [True, False])
def test_tensor_parallel_takes_the_cpu_where_torch_is_built_for_a_device_that_is_not_there(
    is_there: bool, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: is_there)
    geometry = ModelGeometry(2, 4, 2, 8, ("full_attention",) * 2)
    given = Placement(tensor_parallel=True), geometry, torch.device("cpu"), LlamaConfig(), folder
    if is_there:
        with pytest.raises(OptionError, match="tensor_parallel takes the cuda devices of this machine, not cpu"):
            Placement.check(*given)
    else:
        Placement.check(*given)

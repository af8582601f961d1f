"""Fused decode steps: projections and whole layers against plain torch, in Triton's interpreter or on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
from transformers.models.llama import modeling_llama
from transformers.models.llama.modeling_llama import LlamaMLP

from headprobe.attention.tap import tapped
from headprobe.compression.chunks import layers_in_chunks
from headprobe.compression.decoding import Decoder, run_step
from headprobe.compression.fused import layers
from headprobe.compression.fused.launches import Blocking
from headprobe.compression.fused.layers import unfit
from headprobe.compression.kernels.source import Source
from headprobe.compression.session import compress
from headprobe.errors import ModelError, OptionError
from tests.compression.fused.cases import (
    CASES,
    MODELS,
    Projection,
    logits_of,
    projection_error,
    projections,
    small_model,
)

ROOT = Path(__file__).parents[3]
pytest.importorskip("triton")


@pytest.fixture(scope="module")
def interpreted() -> Any:
    command = [sys.executable, "-W", "error", "-m", "tests.compression.fused.cases"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", list(projections()))
def test_a_projection_equals_plain_torch_within_the_bound_of_its_type(interpreted: Any, case: str) -> None:
    assert interpreted["projections"][case] <= 1


@pytest.mark.parametrize("case", ["chunks", *(" ".join(map(str, case)) for case in CASES)])
def test_a_fused_layer_gives_the_logits_of_the_layer_itself(interpreted: Any, case: str) -> None:
    error = interpreted["layers"][case]
    assert isinstance(error, float), error
    assert error < 5e-6


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [1, 3, 16])
@pytest.mark.parametrize("gated", [False, True])
def test_on_a_gpu_a_projection_equals_plain_torch(rows: int, gated: bool) -> None:
    sizes = (512, 512) if gated else (512, 128, 120)
    case = Projection(sizes, rows, 1024, normed=True, gated=gated, dtype=torch.bfloat16)
    assert projection_error(case, "cuda", Blocking.of(rows, normed=True, gated=gated)) < 0.5


PAIRS = [*product(MODELS, ["full", "snapkv"]), ("llama", "h2o"), ("qwen3", "h2o")]
LITTLE_ROOM = [("llama", "full", 1, 2), ("llama", "snapkv", 3, 2)]  # laid out anew, and a step captured again


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("kind", "policy", "batch", "slack"), [*((*pair, batch, 64) for pair in PAIRS for batch in (1, 3)), *LITTLE_ROOM]
)
def test_on_a_gpu_fused_and_captured_steps_give_the_logits_of_the_layers_themselves(
    kind: str, policy: str, batch: int, slack: int
) -> None:
    model = small_model(kind, head_dim=64).to("cuda", torch.bfloat16)
    exact, _ = logits_of(model.float(), policy, batch, fused=False)
    model.to(torch.bfloat16)
    made = [logits_of(model, policy, batch, fused=fused, graphs=True, slack=slack) for fused in (False, True)]
    assert [decoder.fused_refusal is None for _, decoder in made] == [False, True]
    assert [decoder.uses_graph for _, decoder in made] == [True, True]
    errors = [float((found - exact).norm() / exact.norm()) for found, _ in made]
    assert errors[0] != errors[1]
    assert errors[1] <= (0.5 if policy == "h2o" else 1.5 * errors[0] + 1e-3)  # it may evict others after rounding


# -- what is not fused ------------------------------------------------------------------------------------------------


def refusal(model: Any, batch: int = 1) -> str | None:
    with compress(model, "full") as session, torch.inference_mode():
        cache = session.new_cache()
        run_step(model, cache, torch.arange(9)[None].repeat(batch, 1))
        return unfit(model, cache)


def test_a_large_batch_is_left_as_it_is() -> None:
    model = small_model("llama")
    assert refusal(model) is None
    assert refusal(model, 17) == "a batch of 17 sequences: at most 16 can be fused"


def test_layers_with_hooks_are_left_as_they_are() -> None:
    model = small_model("llama")
    hook = model.model.layers[1].mlp.register_forward_hook(lambda module, given, output: None)
    assert refusal(model) == "layer 1: mlp has hooks"
    hook.remove()
    everywhere = nn.modules.module.register_module_forward_hook(lambda module, given, output: None)
    assert refusal(model) == "there are hooks on all modules"
    everywhere.remove()
    assert refusal(model) is None


def test_layers_in_training_mode_are_left_as_they_are() -> None:
    model = small_model("llama")
    model.model.layers[0].mlp.train()
    assert refusal(model) == "layer 0: mlp is in training mode"


class HalvedMLP(LlamaMLP):
    """Another MLP in place of transformers' own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 0.5


class LlamaDecoderLayer(modeling_llama.LlamaDecoderLayer):
    """Of the same name as transformers' own."""


def test_parts_that_were_replaced_are_left_as_they_are() -> None:
    for replaced in (
        lambda layer, config: setattr(layer, "mlp", HalvedMLP(config)),
        lambda layer, config: setattr(layer, "input_layernorm", nn.RMSNorm(config.hidden_size)),
        lambda layer, config: setattr(layer.mlp, "forward", lambda x: x),
    ):
        model = small_model("llama")
        replaced(model.model.layers[1], model.config)
        assert (refusal(model.eval()) or "").startswith("layer 1: "), replaced
    model = small_model("llama")
    model.model.layers[1] = LlamaDecoderLayer(model.config, 1)
    assert refusal(model.eval()) == "layer 1: LlamaDecoderLayer is not transformers' own LlamaDecoderLayer"


def test_a_class_of_transformers_that_was_patched_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(self: Any, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x)) * 0.5

    monkeypatch.setattr(LlamaMLP, "forward", halved)
    assert refusal(small_model("llama")) == "layer 0: LlamaMLP is not transformers' own LlamaMLP"


def test_another_activation_is_left_as_it_is() -> None:
    model = small_model("llama")
    model.model.layers[1].mlp.act_fn = nn.GELU().eval()
    assert refusal(model) == "layer 1: the activation is GELU, not SiLU"


def test_another_linear_layer_than_torchs_own_is_left_as_it_is() -> None:
    class Adapted(nn.Linear):
        """As adapters do."""

    model = small_model("qwen2")
    own = model.model.layers[0].self_attn.q_proj
    model.model.layers[0].self_attn.q_proj = Adapted(own.in_features, own.out_features)
    assert refusal(model.eval()) == "layer 0: its linear layers are not torch's own"


def test_a_bias_where_none_is_expected_is_left_as_it_is() -> None:
    model = small_model("llama")
    own = model.model.layers[0].self_attn.o_proj
    model.model.layers[0].self_attn.o_proj = nn.Linear(own.in_features, own.out_features, bias=True)
    assert refusal(model.eval()) == "layer 0: linear layers have biases where none are expected"


def test_a_model_of_another_kind_is_left_as_it_is() -> None:
    config = GPTNeoXConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    assert refusal(GPTNeoXForCausalLM(config).eval()) == "layers of GPTNeoXForCausalLM are not of a known form"


@contextmanager
def decoding(model: Any, **how: Any) -> Iterator[Decoder]:
    """A decoder behind a prompt of nine tokens, in a session."""
    with compress(model, "full") as session, torch.inference_mode():
        cache = session.new_cache()
        run_step(model, cache, torch.arange(9)[None])
        yield Decoder(model, cache, **how)


def test_on_a_cpu_nothing_is_fused_and_the_decoder_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def imported(source: Source) -> str:
        raise AssertionError(f"{source.package} is imported for nothing")

    monkeypatch.setattr(Source, "fault", imported)
    model = small_model("llama")
    with decoding(model) as decoder:
        assert decoder.fused_refusal == "a step is fused on CUDA devices in bfloat16, not on cpu in float32"
    with decoding(model, fused=False) as decoder:
        assert decoder.fused_refusal == "fused layers are switched off"


# -- in place for a step, without Triton: a fused step is only told of here -------------------------------------------


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The hidden states of fused steps; what they give is what they got."""
    steps: list[torch.Size] = []

    def step(layer: layers.FusedLayer, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        assert rotary[0].shape[-1] == layer.held.store.widths[0]
        steps.append(x.shape)
        layer.held.store.written(1)
        layer.held.seen += 1
        return x

    monkeypatch.setattr(layers, "_refusal", unfit)
    monkeypatch.setattr(layers.FusedLayer, "__call__", step)
    return steps


ONE = torch.tensor([5])


def test_a_step_is_fused_in_the_session_alone(told: list[torch.Size]) -> None:
    model = small_model("llama")
    with decoding(model) as decoder:
        decoder.step(ONE)
        assert len(told) == 2
        with tapped(model, lambda call: call.query), pytest.raises(ModelError, match="did not reach"):
            decoder.step(ONE)
        assert len(told) == 2
    with decoding(model) as decoder:
        pass
    with torch.inference_mode(), pytest.raises(ModelError, match="did not reach"):
        decoder.step(ONE)
    assert len(told) == 2


def test_hooks_that_come_later_are_seen(told: list[torch.Size]) -> None:
    model, seen = small_model("llama"), []
    with decoding(model) as decoder:
        decoder.step(ONE)
        hook = model.model.layers[0].mlp.register_forward_hook(lambda module, given, output: seen.append(module))
        decoder.step(ONE)
        assert decoder.fused_refusal == "layer 0: mlp has hooks"
        hook.remove()
        decoder.step(ONE)
    assert (len(seen), len(told)) == (1, 4)


def test_a_forward_of_anothers_comes_back_after_each_step(told: list[torch.Size]) -> None:
    model = small_model("llama")
    with decoding(model) as decoder, layers_in_chunks(model, 4):
        before = [vars(layer)["forward"] for layer in model.model.layers]
        decoder.step(ONE)
        assert [vars(layer)["forward"] for layer in model.model.layers] == before
        assert len(told) == 2
    assert not any("forward" in vars(layer) for layer in model.model.layers)


def test_a_step_that_is_broken_off_leaves_no_forward_behind_and_is_not_taken_again(
    told: list[torch.Size], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(layer: layers.FusedLayer, x: torch.Tensor, rotary: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        raise KeyboardInterrupt(layer, x, rotary)

    model = small_model("llama")
    with decoding(model) as decoder:
        with monkeypatch.context() as during:
            during.setattr(layers.FusedLayer, "__call__", broken)
            with pytest.raises(KeyboardInterrupt):
                decoder.step(ONE)
        assert not any("forward" in vars(layer) for layer in model.model.layers)
        with pytest.raises(OptionError, match="interrupted while the model was reading"):
            decoder.step(ONE)
    assert told == []


def test_threads_on_one_model_each_have_their_own_layers(told: list[torch.Size]) -> None:
    model = small_model("llama")
    with decoding(model) as fused, decoding(model, fused=False) as own:
        alone = own.step(ONE).clone()
        own.cache.take_back(1)
        entered, done, given = Event(), Event(), []

        def other() -> None:
            with torch.inference_mode():
                entered.wait(20)
                given.append(own.step(ONE))
                done.set()

        thread = Thread(target=other)
        thread.start()
        with fused._step.layers.in_place():
            entered.set()
            assert done.wait(20)
        thread.join()
        assert torch.equal(given[0], alone)
        assert told == []
        fused.step(ONE)
        assert len(told) == 2
    assert not any("forward" in vars(layer) for layer in model.model.layers)

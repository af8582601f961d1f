"""Decoding from a captured CUDA graph against decoding step by step: every policy, kernel, batch, turn and draw.

On a CPU nothing is captured: there the same tests show that both ways of calling agree, and that the tests run.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from headprobe.compression.decoding import Sampler
from headprobe.compression.generation import generate, generate_batch
from headprobe.compression.importance import AttentionShape
from headprobe.compression.kernels.choice import KERNELS, KernelNeeds, capability, device_name
from headprobe.compression.policies import POLICIES
from headprobe.compression.session import compress
from tests.compression.kernels.stores import plain, query_for, random_store
from tests.compression.test_decoding import small_llama, tokens
from tests.compression.test_session import options

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SLACK = 64  # room for all that is produced: a cache that is laid out anew is captured anew


@cache
def llama(device: str) -> Any:
    return small_llama(4, 2, head_dim=16).to(device)


def prompt(seed: int, count: int = 90) -> list[int]:
    ids: list[int] = tokens(count, seed=seed)[0].tolist()
    return ids


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", list(POLICIES))
def test_captured_decoding_gives_the_tokens_of_eager_decoding(policy: str, device: str) -> None:
    model, made = llama(device), []
    for graphs in (True, False):
        with compress(model, **options(model, policy), slack=SLACK) as session:
            made.append(generate(session, prompt(1), max_new_tokens=24, graphs=graphs))
    assert made[0].tokens == made[1].tokens
    assert (made[0].graph_refusal is None) == (device == "cuda")
    assert made[1].graph_refusal == "graphs are switched off"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", ["full", "snapkv", "h2o", "headkv-r2"])
def test_a_captured_batch_gives_every_sequence_its_own_tokens(policy: str, device: str) -> None:
    model = llama(device)
    prompts = [prompt(seed, 60 + 10 * seed) for seed in range(1, 4)]
    with compress(model, **options(model, policy), slack=SLACK) as session:
        alone = [generate(session, ids, max_new_tokens=16, graphs=False).tokens for ids in prompts]
        together = generate_batch(session, prompts, max_new_tokens=16)
    assert [tuple(row) for row in together.tokens] == alone


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("policy", ["snapkv", "h2o"])
def test_several_turns_on_a_captured_cache_equal_eager_ones(policy: str, device: str) -> None:
    model, made = llama(device), []
    for graphs in (True, False):
        with compress(model, **options(model, policy), slack=SLACK) as session:
            first = generate(session, prompt(1), max_new_tokens=12, graphs=graphs).tokens
            ids = torch.tensor([[*prompt(1), *first, *prompt(5, 6)]], device=device)
            again = session.generate(ids, max_new_tokens=12, do_sample=False)
            made.append((first, again[0, ids.shape[1] :].tolist()))
    assert made[0] == made[1]


@pytest.mark.parametrize("device", DEVICES)
def test_a_seed_draws_the_same_tokens_captured_and_eager(device: str) -> None:
    model, made = llama(device), {}
    for seed in (3, 4):
        for graphs in (True, False):
            with compress(model, **options(model, "snapkv"), slack=SLACK) as session:
                sampler = Sampler(temperature=2.0, top_k=40, top_p=0.95, seed=seed)
                answer = generate(session, prompt(1), max_new_tokens=24, sampler=sampler, graphs=graphs)
            made[seed, graphs] = answer.tokens
    assert made[3, True] == made[3, False] != made[4, True] == made[4, False]


@pytest.mark.gpu
@pytest.mark.parametrize("name", [kernel.name for kernel in KERNELS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_kernel_that_serves_this_gpu_equals_plain_loops(name: str, dtype: torch.dtype) -> None:
    kernel = next(kernel for kernel in KERNELS if kernel.name == name)
    device, kind = torch.device("cuda"), str(dtype).removeprefix("torch.")
    refusal = kernel.refuses(
        KernelNeeds("cuda", kind, 64, device_name=device_name(device), capability=capability(device))
    )
    if refusal is not None:
        pytest.skip(refusal)
    for lengths, batch in (([3, 200, 64, 65], 1), ([17, 130, 5, 64], 2)):
        store = random_store(lengths, batch, dim=64)
        query, shape = query_for(store, 2, 1, 64), AttentionShape(0.125)
        wanted = plain(query, store, shape)
        there = random_store(lengths, batch, dim=64, device="cuda")
        there.keys, there.values = there.keys.to(dtype), there.values.to(dtype)
        found = kernel.attend(query.to("cuda", dtype), there, shape).float().cpu()
        bound = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(found, wanted, atol=bound, rtol=bound)

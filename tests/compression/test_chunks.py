"""Prompts in chunks write hidden states over in place, but never what somebody else looks at."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headprobe.compression.session import compress
from headprobe.errors import OptionError
from headprobe.models.releases import with_cache
from tests.tiny_models import tiny_model


@pytest.fixture(scope="module")
def llama() -> Any:
    return tiny_model("llama")


def tokens(count: int) -> torch.Tensor:
    return torch.randint(3, 300, (1, count), generator=torch.Generator().manual_seed(5))


def test_hidden_states_that_are_asked_for_are_each_layers_own(llama: Any) -> None:
    found = []
    for chunk in (None, 7):
        with compress(llama, "snapkv", budget=16, prefill_chunk=chunk) as session, torch.inference_mode():
            out = llama(input_ids=tokens(30), **with_cache(llama, session.new_cache()), output_hidden_states=True)
        found.append(torch.stack(out.hidden_states))
    torch.testing.assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)
    assert not torch.equal(found[0][0], found[0][1])


def test_embeddings_of_the_caller_are_left_alone(llama: Any) -> None:
    with compress(llama, "snapkv", budget=16, prefill_chunk=7) as session, torch.inference_mode():
        given = llama.get_input_embeddings()(tokens(30))
        before = given.clone()
        llama(inputs_embeds=given, **with_cache(llama, session.new_cache()))
    assert torch.equal(given, before)


def test_one_tensor_of_hidden_states_serves_all_layers(llama: Any) -> None:
    seen: set[int] = set()
    hook = llama.model.norm.register_forward_hook(
        lambda module, given, out: seen.update((given[0].data_ptr(), out.data_ptr()))
    )
    embedded = llama.get_input_embeddings().register_forward_hook(lambda module, given, out: seen.add(out.data_ptr()))
    try:
        with compress(llama, "snapkv", budget=16, prefill_chunk=7) as session, torch.inference_mode():
            llama(input_ids=tokens(30), **with_cache(llama, session.new_cache()))
    finally:
        hook.remove()
        embedded.remove()
    assert len(seen) == 1


def test_the_models_forward_functions_come_back(llama: Any) -> None:
    with pytest.raises(ZeroDivisionError), compress(llama, "snapkv", budget=16, prefill_chunk=7):
        _ = 1 / 0
    assert all("forward" not in vars(module) for module in llama.modules())
    assert not llama.model._forward_pre_hooks


def test_a_chunk_of_no_token_is_refused(llama: Any) -> None:
    with (
        pytest.raises(OptionError, match="a prefill chunk of 0 tokens is too small, need at least 1"),
        compress(llama, "snapkv", budget=16, prefill_chunk=0),
    ):
        pass

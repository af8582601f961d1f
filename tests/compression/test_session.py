"""`with compress(model, ...)`: transformers' own `generate()` on a ragged cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, TextStreamer

from headprobe.compression.policies import POLICIES, make_policy
from headprobe.compression.session import compress
from headprobe.errors import ModelError, NonFiniteError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.releases import with_cache
from tests.compression.scores import random_scores
from tests.compression.test_decoding import small_llama, tokens
from tests.tiny_models import tiny_model, tiny_tokenizer


def options(model: Any, name: str, budget: int = 20) -> dict[str, Any]:
    policy = make_policy(name)
    scores = random_scores(ModelGeometry.from_config(model.config)) if policy.needs_scores else None
    return {"policy": policy, "budget": None if policy.keeps_all else budget, "scores": scores}


@pytest.fixture(scope="module")
def llama() -> Any:
    return small_llama(4, 2)


def test_without_eviction_generate_gives_the_models_own_tokens(llama: Any) -> None:
    prompt = tokens(50)
    own = llama.generate(prompt, max_new_tokens=12, do_sample=False)
    with compress(llama, **options(llama, "headkv-r2", budget=64)) as session:
        assert torch.equal(session.generate(prompt, max_new_tokens=12, do_sample=False), own)


@pytest.mark.parametrize("sampling", [False, True])
def test_generate_refuses_numbers_that_are_not_finite(sampling: bool) -> None:
    model = small_llama(4, 2)
    with torch.no_grad():
        model.model.layers[-1].self_attn.v_proj.weight[0, 0] = torch.nan
    match = r"NaN or infinity in the logits: .*self_attn.v_proj.weight"
    with compress(model, **options(model, "snapkv")) as session, pytest.raises(NonFiniteError, match=match):
        session.generate(tokens(50), max_new_tokens=4, do_sample=sampling)


def test_a_model_with_other_kv_heads_than_its_config_says_is_refused() -> None:
    model = small_llama(4, 2)
    model.config.num_key_value_heads = 1
    match = r"compressed layer 0 caches 2 KV heads, by the model's config it has 1"
    with compress(model, "snapkv", budget=20) as session, pytest.raises(ModelError, match=match):
        session.generate(tokens(50), max_new_tokens=4)


def test_layers_that_use_the_keys_of_others_are_refused() -> None:
    model = small_llama(4, 2)
    model.config.num_kv_shared_layers = 2
    match = "2 layers of LlamaForCausalLM use the keys and values of other layers"
    with pytest.raises(ModelError, match=match), compress(model, "snapkv", budget=20):
        pass


def test_the_same_seed_samples_the_same_tokens(llama: Any) -> None:
    def sampled() -> torch.Tensor:
        torch.manual_seed(3)
        with compress(llama, **options(llama, "snapkv")) as session:
            return session.generate(tokens(50), max_new_tokens=12, do_sample=True, top_k=20)

    assert torch.equal(sampled(), sampled())


def test_a_second_turn_goes_on_with_the_cache(llama: Any) -> None:
    """The turns through `generate` equal the turns fed by hand."""
    prompt, more = tokens(50), tokens(9, seed=5)
    with compress(llama, **options(llama, "headkv-r2")) as session:
        first = session.generate(prompt, max_new_tokens=6, do_sample=False)
        held = session.cache.lengths.sum()  # type: ignore[union-attr]
        second = session.generate(torch.cat([first, more], 1), max_new_tokens=6, do_sample=False)
        assert session.cache is not None
        assert session.cache.tokens_seen == 50 + 6 + 9 + 6 - 1
        assert session.cache.lengths.sum() - held == 4 * (6 + 9)
        session.reset()
        cache = session.new_cache()
        with torch.inference_mode():
            llama(input_ids=prompt, **with_cache(llama, cache))
            for token in first[:, 50:].T:
                llama(input_ids=token[None], **with_cache(llama, cache))
            logits = llama(input_ids=more, **with_cache(llama, cache)).logits
    assert int(logits[0, -1].argmax()) == int(second[0, first.shape[1] + 9])


def test_streaming_and_stop_strings(llama: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    prompt = tokenizer("Text: The harbour lay still in the morning. Question:", return_tensors="pt")["input_ids"]
    with compress(model, **options(model, "snapkv")) as session:
        whole = session.generate(prompt, max_new_tokens=12, do_sample=False, streamer=TextStreamer(tokenizer, True))
        stop = tokenizer.decode(whole[0, prompt.shape[1] + 3 : prompt.shape[1] + 5])
        session.reset()
        short = session.generate(prompt, max_new_tokens=12, do_sample=False, stop_strings=stop, tokenizer=tokenizer)
    assert capsys.readouterr().out.strip()
    assert short.shape[1] < whole.shape[1]
    assert torch.equal(short, whole[:, : short.shape[1]])


@pytest.mark.parametrize("name", POLICIES)
def test_a_padded_batch_gives_what_its_sequences_give_alone(llama: Any, name: str) -> None:
    lengths, pad_to = (31, 57, 12), 57
    rows = [tokens(n, seed=n) for n in lengths]
    ids = torch.cat([torch.nn.functional.pad(row, (pad_to - row.shape[1], 0)) for row in rows])
    mask = torch.tensor([[0] * (pad_to - n) + [1] * n for n in lengths])
    generate: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    generate |= {"output_logits": True, "return_dict_in_generate": True}
    with compress(llama, **options(llama, name), keep_positions=True) as session:
        together = session.generate(ids, attention_mask=mask, **generate)
        batch = session.cache
        for index, row in enumerate(rows):
            session.reset()
            alone = session.generate(row, **generate)
            assert session.cache is not None
            assert batch is not None
            assert (batch.lengths[:, index] == session.cache.lengths[:, 0]).all()
            for mine, theirs in zip(together.logits, alone.logits, strict=True):
                torch.testing.assert_close(mine[index], theirs[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "gpt-oss"])
def test_padded_batches_with_sliding_layers(family: str) -> None:
    model = tiny_model(family)
    rows = [tokens(n, seed=n, vocabulary=300) for n in (10, 40)]
    ids = torch.cat([torch.nn.functional.pad(row, (40 - row.shape[1], 0)) for row in rows])
    mask = torch.tensor([[0] * 30 + [1] * 10, [1] * 40])
    generate: dict[str, Any] = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with compress(model, **options(model, "headkv-r2")) as session:
        together = session.generate(ids, attention_mask=mask, **generate)[:, 40:]
        for index, row in enumerate(rows):
            session.reset()
            assert torch.equal(session.generate(row, **generate)[0, row.shape[1] :], together[index])


@pytest.mark.parametrize("name", ["headkv-r2", "h2o", "vatp-scissorhands", "ada-snapkv", "razor", "full"])
@pytest.mark.parametrize("chunk", [1, 13, 64])
def test_chunks_change_nothing(llama: Any, name: str, chunk: int) -> None:
    def logits(prefill_chunk: int | None) -> tuple[torch.Tensor, list[list[int]]]:
        with (
            compress(llama, **options(llama, name), prefill_chunk=prefill_chunk, keep_positions=True) as session,
            torch.inference_mode(),
        ):
            cache = session.new_cache()
            out = [llama(input_ids=tokens(61), **with_cache(llama, cache)).logits[0, -1]]
            out += [llama(input_ids=tokens(1, seed=i), **with_cache(llama, cache)).logits[0, -1] for i in range(3)]
            return torch.stack(out), [p.tolist() for layer in cache.ragged_layers for p in layer.positions]

    whole, kept = logits(None)
    parts, kept_by_parts = logits(chunk)
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-4)
    assert kept_by_parts == kept


@pytest.mark.parametrize("family", ["gemma3", "gpt-oss", "phi3"])
def test_chunks_of_other_families(family: str) -> None:
    model = tiny_model(family)
    outs = []
    for chunk in (None, 7):
        with compress(model, **options(model, "snapkv"), prefill_chunk=chunk) as session, torch.inference_mode():
            cache = session.new_cache()
            outs.append(model(input_ids=tokens(40, vocabulary=300), **with_cache(model, cache)).logits[0, -1])
            outs[-1] = torch.cat([outs[-1], model(input_ids=tokens(1), **with_cache(model, cache)).logits[0, -1]])
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=1e-4)


def test_at_most_one_layer_is_full_while_a_prompt_is_read(llama: Any) -> None:
    """When a layer is reached, every earlier one holds its budget only."""
    held: list[int] = []
    with compress(llama, **options(llama, "snapkv"), slack=1) as session, torch.inference_mode():
        cache = session.new_cache()
        hooks = [
            layer.register_forward_pre_hook(lambda layer, given: held.append(cache.nbytes))
            for layer in llama.model.layers
        ]
        llama(input_ids=tokens(90), **with_cache(llama, cache))
        for hook in hooks:
            hook.remove()
        assert cache.ragged_layers[0]._reader is None
        assert held == [0, cache.nbytes // 2]
        assert cache.nbytes == 2 * (20 + 1) * 2 * (8 + 8) * 4  # layers x entries x heads x (key + value) x float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slack", [1, 64])
def test_bytes_are_entries_and_slack_times_width(dtype: torch.dtype, slack: int) -> None:
    model = small_llama(4, 2, head_dim=16).to(dtype)
    with compress(model, **options(model, "headkv-r2"), slack=slack) as session, torch.inference_mode():
        model(input_ids=tokens(90), **with_cache(model, session.new_cache()))
        assert session.cache is not None
        element = torch.empty(0, dtype=dtype).element_size()
        assert session.cache.nbytes == (20 + slack) * 2 * 2 * 16 * 2 * element
        storage = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
                   for layer in session.cache.ragged_layers for t in (layer.store.keys, layer.store.values)}  # type: ignore[union-attr]  # fmt: skip
        assert sum(storage.values()) == session.cache.nbytes


@pytest.mark.parametrize("name", ["streaming-llm", "h2o", "scissorhands", "vatp-h2o", "vatp-scissorhands"])
def test_eviction_while_decoding_takes_no_more_memory(llama: Any, name: str) -> None:
    with compress(llama, **options(llama, name)) as session, torch.inference_mode():
        cache = session.new_cache()
        llama(input_ids=tokens(50), **with_cache(llama, cache))
        before = cache.nbytes, cache.bookkeeping_nbytes, cache.ragged_layers[0].store.keys.data_ptr()  # type: ignore[union-attr]
        for i in range(60):
            llama(input_ids=tokens(1, seed=i), **with_cache(llama, cache))
        after = cache.nbytes, cache.bookkeeping_nbytes, cache.ragged_layers[0].store.keys.data_ptr()  # type: ignore[union-attr]
    assert after == before
    assert (cache.lengths == 20).all()


def test_the_models_attention_comes_back_after_an_error(llama: Any) -> None:
    before = llama.config._attn_implementation
    with pytest.raises(ZeroDivisionError), compress(llama, **options(llama, "snapkv"), prefill_chunk=9):
        _ = 1 / 0
    assert llama.config._attn_implementation == before
    assert all("forward" not in vars(layer) for layer in llama.model.layers)
    prompt = tokens(20)
    with torch.inference_mode():
        llama(input_ids=prompt, **with_cache(llama, DynamicCache(config=llama.config)))


def test_what_a_compressed_cache_cannot_do_is_refused(llama: Any) -> None:
    prompt = tokens(30)
    with compress(llama, **options(llama, "snapkv")) as session:
        with pytest.raises(OptionError, match="beam search with 3 beams"):
            session.generate(prompt, num_beams=3)
        with pytest.raises(OptionError, match="prefill_chunk_size"):
            session.generate(prompt, prefill_chunk_size=8)
        with pytest.raises(OptionError, match="past_key_values"):
            session.generate(prompt, past_key_values=DynamicCache())
        cache = session.new_cache()
        with pytest.raises(OptionError, match="does not support crop"):
            cache.crop(-2)
        with pytest.raises(OptionError, match="does not support beam search"):
            cache.reorder_cache(torch.tensor([0]))
        with pytest.raises(ModelError, match="runs without a compressed cache"):
            llama(input_ids=prompt, **with_cache(llama, DynamicCache(config=llama.config)))
        with pytest.raises(OptionError, match="padded on the left"):
            llama(
                input_ids=prompt,
                attention_mask=torch.tensor([[1] * 20 + [0] * 10]),
                **with_cache(llama, session.new_cache()),
            )
    with pytest.raises(ModelError, match="use the cache inside a compression session"), torch.inference_mode():
        llama(input_ids=prompt, **with_cache(llama, cache))


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_what_layers_cannot_do_is_refused_by_all_of_them(family: str) -> None:
    """Also by sliding-window layers, the first of Gemma-3's."""
    model = tiny_model(family)
    with compress(model, **options(model, "snapkv")) as session:
        cache = session.new_cache()
    for held in (cache, *cache.layers):
        held.crop(0)
        with pytest.raises(OptionError, match="does not support crop"):
            held.crop(-2)
        with pytest.raises(OptionError, match="does not support beam search"):
            held.reorder_cache(torch.tensor([0]))
        with pytest.raises(OptionError, match="does not support offloading"):
            held.offload()
        with pytest.raises(OptionError, match="does not support repeating sequences"):
            held.batch_repeat_interleave(2)
        with pytest.raises(OptionError, match="does not support selecting sequences"):
            held.batch_select_indices(torch.tensor([0]))


def test_scores_of_another_geometry_are_refused(llama: Any) -> None:
    other = random_scores(ModelGeometry(2, 8, 2, 8, ("full_attention",) * 2))
    wanted = "the scores are for 2 layers of 8 query heads, the model has 2 of 4 query and 2 KV heads"
    with pytest.raises(OptionError, match=wanted), compress(llama, "headkv-r2", budget=20, scores=other):
        pass


def test_models_without_full_attention_are_refused_by_name() -> None:
    model = tiny_model("mistral")
    with (
        pytest.raises(ModelError, match="MistralForCausalLM has no full-attention layer"),
        compress(model, "snapkv", budget=20),
    ):
        pass


def test_a_keyword_that_says_nothing_about_serving_is_refused(llama: Any) -> None:
    with pytest.raises(TypeError, match="kernel"), compress(llama, "snapkv", budget=16, kernel="torch"):  # type: ignore[call-arg]
        pass

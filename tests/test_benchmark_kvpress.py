"""The comparison with kvpress: what is counted, in which order, and what a result says. kvpress is not needed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("benchmarks", reason="benchmarks are not part of the source archive")

from benchmarks.kvpress import Contender, Setup, contenders, kept_entries, play, random_tokens, summary, table
from benchmarks.kvpress_worker import Headprobe, held_bytes, measure, random_scores
from headprobe.geometry import ModelGeometry
from tests.tiny_models import tiny_model


def test_bytes_are_those_of_the_storage_behind_a_view() -> None:
    whole = torch.zeros(100, 8)
    assert held_bytes(SimpleNamespace(keys=whole[:3])) == {"kv_bytes": 3200, "other_bytes": 0}


def test_a_storage_counts_once_and_as_keys_wherever_else_it_is_found() -> None:
    keys = torch.zeros(10, 8)
    layer = SimpleNamespace(table=keys.view(-1), keys=keys, values=torch.zeros(10, 8), again=[keys])
    assert held_bytes([layer, layer]) == {"kv_bytes": 640, "other_bytes": 0}


def test_tensors_beside_keys_and_values_are_told_apart() -> None:
    masked = (torch.zeros(5, dtype=torch.int64), torch.zeros(5, dtype=torch.int64))
    layer = SimpleNamespace(
        keys=torch.zeros(2, 8), values=torch.zeros(2, 8), inner={"start": torch.zeros(4, dtype=torch.int32)}
    )
    assert held_bytes(layer, [masked, None]) == {"kv_bytes": 128, "other_bytes": 16 + 80}


def test_weights_and_loops_are_not_followed() -> None:
    cache = SimpleNamespace(keys=torch.zeros(2, 8), module=torch.nn.Linear(4, 4))
    cache.myself = cache
    assert held_bytes(cache) == {"kv_bytes": 64, "other_bytes": 0}


@pytest.mark.parametrize(
    ("prompt", "ratio", "kept"), [(4096, 0.9, 409), (4096, 0.9375, 256), (10, 0.5, 5), (5, 0.9, 1)]
)
def test_kept_entries_are_rounded_down(prompt: int, ratio: float, kept: int) -> None:
    assert kept_entries(prompt, ratio) == kept


def test_both_sides_are_asked_for_the_same() -> None:
    tokens = random_tokens(80, seed=3)
    setup = Setup(64, 16, tokens)
    ours, theirs = (
        setup.request(Contender("headprobe", "snapkv", 0.75)),
        setup.request(Contender("kvpress", "snapkv", 0.75)),
    )
    assert {key: value for key, value in ours.items() if value != theirs[key]} == {"side": "headprobe"}
    assert ours["entries"] == 16
    assert ours["tokens"] == tokens == random_tokens(80, seed=3)


class Script:
    """A side that notes who was asked, and answers with times from a list."""

    def __init__(self, asked: list[str], seconds: list[float]) -> None:
        self.asked, self.seconds = asked, seconds

    def measure(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request["side"])
        now = self.seconds.pop(0)
        return {
            "prefill_s": now, "prefill_peak_bytes": 7, "decode_s_per_token": now, "decode_fastest_step_s": now,
            "kv_bytes": 100, "other_bytes": 1, "end_kv_bytes": 110, "end_other_bytes": 1,
            "entries_held": 10, "entries_seen": 9,
        }  # fmt: skip


def test_rounds_alternate_and_ratios_are_medians_of_the_rounds_own() -> None:
    asked: list[str] = []
    sides: Any = {"kvpress": Script(asked, [1.0, 2.0, 4.0]), "headprobe": Script(asked, [3.0, 2.0, 4.0])}
    field = [Contender("kvpress", "snapkv", 0.5), Contender("headprobe", "snapkv", 0.5)]
    *_, found = play(sides, Setup(4, 1, [5] * 5), field, rounds=3)
    assert asked == ["kvpress", "headprobe", "headprobe", "kvpress", "kvpress", "headprobe"]
    theirs, ours = summary(field, found)
    assert (theirs["prefill_s"], ours["prefill_s"]) == (2.0, 3.0)
    assert ours["prefill_s_over_kvpress_snapkv"] == 1.0  # of 3/1, 2/2 and 4/4
    assert theirs["decode_s_per_token_over_kvpress_snapkv"] == 1.0
    assert (ours["entries_held"], ours["entries_seen"], ours["kv_bytes"], ours["end_kv_bytes"]) == (10, 9, 100, 110)
    assert "headprobe snapkv 0.5" in table([theirs, ours])


def test_every_ratio_has_all_policies_behind_the_models_as_they_are() -> None:
    names = [contender.name for contender in contenders([0.9])]
    assert names == [
        "kvpress uncompressed", "headprobe uncompressed", "kvpress snapkv 0.9", "headprobe snapkv 0.9",
        "headprobe headkv-r2 0.9", "kvpress adakv 0.9", "headprobe ada-snapkv 0.9",
    ]  # fmt: skip


@pytest.mark.parametrize("policy", [None, "snapkv", "ada-snapkv", "headkv-r2"])
def test_our_side_measures_a_conversation(policy: str | None) -> None:
    model = tiny_model("llama")
    geometry = ModelGeometry.from_config(model.config)
    heads = geometry.num_hidden_layers * geometry.num_key_value_heads
    found = measure(
        Headprobe(model, 0), Setup(64, 4, [5 + i % 40 for i in range(68)]).request(Contender("headprobe", policy, 0.75))
    )
    entries = 64 if policy is None else 16
    assert found["entries_held"] == found["entries_seen"] == entries * heads
    slack = 0 if policy is None else 64
    assert found["kv_bytes"] == (entries + slack) * heads * 2 * geometry.head_dim * 4
    assert 0 < found["decode_fastest_step_s"] <= found["decode_s_per_token"]
    assert found["prefill_s"] > 0


def test_random_scores_fit_the_model_and_repeat() -> None:
    model = tiny_model("llama")
    first, second = random_scores(model, 1), random_scores(model, 1)
    assert first.mean.shape == ModelGeometry.from_config(model.config).shape
    assert (first.mean == second.mean).all()

"""A model whose heads lie on two processes against the same model on one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headprobe.compression.policies import POLICIES
from headprobe.errors import ModelError, OptionError
from headprobe.geometry import ModelGeometry
from headprobe.models.loading import load_model
from headprobe.models.placement import HeadSpread, check_spread
from tests.conftest import CliResult
from tests.distributed import two_ranks
from tests.fork_server import ForkServer, LoadedProcess
from tests.tiny_models import build_tiny_model
from tests.torchrun import forked_ranks, torchrun

pytest.importorskip("accelerate")


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, loaded_process: LoadedProcess
) -> tuple[Any, Any]:
    """What one process found, and what two did."""
    folder = tmp_path_factory.mktemp(request.param)
    model = build_tiny_model(request.param, folder)
    ranks = ForkServer(loaded_process, folder, tmp_path_factory.mktemp("streams"))
    done = forked_ranks(ranks, model, folder / "two.json", module="tests.distributed.two_ranks")
    assert done.returncode == 0, done.stderr
    two_ranks.main(str(model), folder / "one.json")
    one, two = (json.loads((folder / name).read_text(encoding="utf-8")) for name in ("one.json", "two.json"))
    return one, two


def test_the_weights_are_known_by_the_same_fingerprint(both: tuple[Any, Any]) -> None:
    one, two = both
    assert one["weights_sha256"] == two["weights_sha256"]


def test_scores_of_all_methods_are_those_of_one_process_in_head_order(both: tuple[Any, Any]) -> None:
    one, two = both
    assert list(one["scores"]) == list(two["scores"])
    for trial, wanted in one["scores"].items():
        found = two["scores"][trial]
        assert found["tokens"] == wanted["tokens"]
        assert list(found["scores"]) == list(wanted["scores"]) != []
        for method, table in wanted["scores"].items():
            np.testing.assert_allclose(found["scores"][method], table, rtol=1e-4, atol=1e-5, err_msg=method)


def test_heads_differ_so_that_another_order_would_be_seen(both: tuple[Any, Any]) -> None:
    one, _ = both
    table = np.array(next(iter(one["scores"].values()))["scores"]["r2"])
    assert np.abs(table - table[:, [2, 3, 0, 1]]).max() > 1e-3


@pytest.mark.parametrize("name", POLICIES)
def test_compressed_answers_are_those_of_one_process(both: tuple[Any, Any], name: str) -> None:
    check(both[0]["answers"][name], both[1]["answers"][name])


def test_quantized_caches_too(both: tuple[Any, Any]) -> None:
    one, two = (found["quantized"] for found in both)
    check(one, two, off=0.2)
    assert one["kv_scale_bytes"] > 0


def check(one: dict[str, Any], two: dict[str, Any], off: float = 1e-4) -> None:
    """Logits nearly, entries of each head and bytes exactly."""
    np.testing.assert_allclose(two["logits"], one["logits"], rtol=1e-3, atol=off)
    assert two | {"logits": None} == one | {"logits": None}


def test_policies_decoded_together_batches_and_turns_are_those_of_one_process(both: tuple[Any, Any]) -> None:
    one, two = both
    for what in ("together", "batch", "turns"):
        assert one[what] == two[what]


def test_only_the_layers_of_one_process_are_fused(both: tuple[Any, Any]) -> None:
    one, two = both
    assert one["unfit"] is None
    assert two["unfit"].startswith("layer 0: self_attn")  # a forward or hooks of its own, by the release


def test_two_processes_take_over_what_one_has_done_and_write_its_file(
    tmp_path: Path, cli: Any, server: ForkServer
) -> None:
    given = ("score", "--lengths", "160", "--depths", "3", "--needles-per-cell", "1", "--json")
    for more in (("-o", tmp_path / "one.json"), ("-o", tmp_path / "two.json", "--shard", "1/2")):
        alone: CliResult = cli(*given, *more)
        assert alone.code == 0, alone.err
    (part,) = tmp_path.glob("*.journal")
    held = [json.loads(line) for line in part.read_text(encoding="utf-8").splitlines()[1:]]
    assert len(held) in (1, 2)
    done = forked_ranks(server, *given, "--tensor-parallel", "-o", "two.json", "--resume")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_trials"] == 3  # one JSON object, from the first process
    one, two = (json.loads((tmp_path / name).read_text(encoding="utf-8")) for name in ("one.json", "two.json"))
    assert one["model"] == two["model"]
    assert two["environment"]["tensor_parallel"] == 2
    assert [trial["response"] for trial in one["trials"]] == [trial["response"] for trial in two["trials"]]
    np.testing.assert_allclose(two["scores"]["mean"], one["scores"]["mean"], atol=1e-5)
    tables = dict(zip([trial["id"] for trial in two["trials"]], two["trial_scores"], strict=True))
    assert all(tables[record["trial"]] == record["scores"]["r2"] for record in held)  # to the last digit: taken over
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "two.json"]


def test_compress_prints_once(tmp_path: Path) -> None:
    given = ("--length", "200", "--budget", "32", "--max-new-tokens", "4", "--json")
    done = torchrun(tmp_path, "compress", "--tensor-parallel", *given)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert (record["kv_entries"], sum(map(sum, record["lengths"]))) == (24 * 32, 24 * 32)
    assert record["cuda_graph_refusal"] == "graphs need a CUDA device, not cpu"


def test_parts_are_joined_in_the_order_of_their_heads() -> None:
    spread = HeadSpread(1, 4, None)
    assert (spread.own(8), spread.own(4)) == (slice(2, 4), slice(1, 2))
    assert torch.equal(torch.cat([torch.arange(8)[HeadSpread(r, 4, None).own(8)] for r in range(4)]), torch.arange(8))


def test_heads_that_cannot_be_dealt_out_evenly_are_refused() -> None:
    geometry = ModelGeometry(2, 12, 4, 8, ("full_attention",) * 2)
    check_spread(geometry, 4)
    with pytest.raises(ModelError, match="4 KV heads cannot be spread evenly over 3 processes"):
        check_spread(geometry, 3)
    with pytest.raises(ModelError, match="4 KV heads cannot be spread evenly over 8 processes"):
        check_spread(geometry, 8)


def test_one_process_alone_is_refused_with_the_call_that_starts_several(cli: Any) -> None:
    done: CliResult = cli("score", "--tensor-parallel", "--model", "no-such-model")
    assert done.code == 2
    assert "torchrun --nproc-per-node 2 -m headprobe ... --tensor-parallel" in done.err
    with pytest.raises(OptionError, match="tensor_parallel needs several processes"):
        load_model("demo", device="cpu", tensor_parallel=True)


def test_placements_that_contradict_each_other_are_refused() -> None:
    for more in ({"device_map": "auto"}, {"quantization": "int8"}):
        with pytest.raises(OptionError, match="tensor_parallel"):
            load_model("demo", device="cpu", tensor_parallel=True, **more)
    with pytest.raises(OptionError, match="device_map is 'evenly', need one of auto, balanced"):
        load_model("demo", device_map="evenly")

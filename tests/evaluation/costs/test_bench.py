"""What is measured in which order, and what rows come to: counts, ratios and nulls, never how fast a machine is."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headprobe.compression.decoding import Decoder
from headprobe.compression.policies import make_policy
from headprobe.errors import DeviceMemoryError, OptionError, PlanError
from headprobe.evaluation.costs import subject
from headprobe.evaluation.costs.bench import FULL, STOCK, UNMEASURED, Bench, BenchOptions, Cell, Row
from headprobe.evaluation.costs.results import BenchRowCheck, Speed, bench_record, budget_seconds, run_bench, summarize
from headprobe.evaluation.costs.shapes import SHAPES, uneven_scores
from headprobe.evaluation.costs.subject import Contender, Subject, contenders_of_shape, copy_bandwidth
from headprobe.profiling.journal import Journal

TINY = SHAPES["tiny"]
CPU = torch.device("cpu")
POLICIES = ("full", "snapkv", "headkv-r2")


def tiny_bench(*policies: str, clock: Any = None, **options: Any) -> Bench:
    """A bench of the tiny shape; by default each look at the clock is a second after the one before."""
    given: dict[str, Any] = {"budgets": (16,), "lengths": (40,), "new_tokens": (1, 3), "repeats": 2} | options
    contenders = contenders_of_shape(TINY, [make_policy(name) for name in policies or POLICIES], (), "mean", 0)
    seconds = count()
    subject = Subject.of_shape(TINY, CPU, "float32", contenders)
    return Bench(subject, BenchOptions(**given), clock or (lambda: float(next(seconds))))


def made_row(cell: Cell, repeat: int, prefill: float, latency: list[float], **more: Any) -> Row:
    measured = {
        "prefill_s": prefill, "latency_s": latency, "peak_bytes": 100, "kv_bytes": 50, "kept_bytes": 40,
        "kernel": "torch", "graph_refusal": None, "error": None,
    }  # fmt: skip
    return cell.head(repeat) | measured | more


def cells(*policies: str) -> list[Cell]:
    return [Cell(name, None if name in (FULL, STOCK) else 8, 64, 1, "auto", (1, 5)) for name in policies]


# -- what is measured -----------------------------------------------------------------------------------------------


def test_every_policy_and_budget_meets_every_length_and_batch_beside_the_full_cache_and_transformers_own() -> None:
    bench = tiny_bench(budgets=(16, 32), lengths=(40, 48), batches=(1, 2))
    found = bench.cells()
    assert len(found) == (2 + 2 * 2) * 2 * 2 == bench.options.num_cells(2)
    assert len({cell.id for cell in found}) == len(found)
    assert [cell.policy for cell in found[:6]] == [STOCK, FULL, "snapkv", "snapkv", "headkv-r2", "headkv-r2"]


def test_only_some_prompts_have_long_answers_where_that_is_asked_for() -> None:
    options = BenchOptions((16,), (40, 48), new_tokens=(1, 5), decode_at=(48,))
    assert [options.answers(length) for length in options.lengths] == [(1,), (1, 5)]
    assert options.most_tokens == 53


def test_the_full_cache_runs_once_more_on_a_kernel_that_only_another_policy_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Bench, "_kernel", lambda self, each: "torch" if each.policy.evicts_while_decoding else "flash4")
    found = tiny_bench("full", "snapkv", "h2o", "scissorhands").cells()
    assert [(cell.policy, cell.kernel) for cell in found] == [
        (STOCK, None), (FULL, "auto"), (FULL, "torch"), ("snapkv", "auto"), ("h2o", "auto"), ("scissorhands", "auto"),
    ]  # fmt: skip


@pytest.mark.parametrize("policy", ["full", "snapkv", "headkv-r2", "h2o", "ada-snapkv", STOCK])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_run_looks_at_its_clock_when_the_first_token_and_each_part_of_the_answer_is_there(
    policy: str, batch: int
) -> None:
    bench = tiny_bench("full", "snapkv", "headkv-r2", "h2o", "ada-snapkv", batches=(batch,), new_tokens=(1, 2, 6))
    cell = next(cell for cell in bench.cells() if cell.policy == policy)
    sample = bench.measure(cell)
    assert (sample.prefill_s, sample.latency_s) == (1.0, (1.0, 2.0, 3.0))
    heads, entry = 2 * 2, 2 * 16 * 4  # layers x KV heads; a key and a value of 16 floats
    kept = 16 if policy not in (STOCK, FULL) else 40
    assert sample.kept_bytes == batch * heads * entry * kept
    assert sample.kv_bytes >= sample.kept_bytes


@pytest.mark.parametrize("policy", ["full", "snapkv", "h2o"])
def test_a_cache_is_laid_out_for_the_whole_answer_before_its_first_part(
    monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """A layout that changes in a later part would have a GPU capture its steps anew where they are timed."""
    layouts, run = [], Decoder.run

    def noted(decoder: Decoder, *given: Any) -> Any:
        layouts.append(decoder.cache.layout)
        made = run(decoder, *given)
        layouts.append(decoder.cache.layout)
        return made

    monkeypatch.setattr(Decoder, "run", noted)
    bench = tiny_bench("full", "snapkv", "h2o", new_tokens=(1, 4, 90))
    bench.measure(next(cell for cell in bench.cells() if cell.policy == policy))
    assert len(layouts) == 4
    assert len(set(layouts)) == 1


def test_cells_take_turns_and_every_other_repeat_runs_backwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    measured = Bench.measure

    def noted(self: Bench, cell: Cell, new_tokens: tuple[int, ...] | None = None) -> Any:
        order.append(cell.policy if new_tokens is None else f"({cell.policy})")
        return measured(self, cell, new_tokens)

    monkeypatch.setattr(Bench, "measure", noted)
    bench = tiny_bench("full", "snapkv", new_tokens=(1,))
    with Journal.start(tmp_path / "runs.jsonl", bench.describe()) as journal:
        rows = run_bench(bench, journal)
    once = [STOCK, FULL, "snapkv"]
    assert order == [f"({name})" for name in once] + once + once[::-1]
    assert [(row["policy"], row["repeat"]) for row in rows] == [(name, repeat) for name in once for repeat in (0, 1)]


# -- what does not fit ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_null_with_the_reason_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    stock = Bench._stock

    def too_large(self: Bench, cell: Cell, counts: tuple[int, ...]) -> Any:
        tried.append(cell.policy)
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Bench, "_stock", too_large)
    bench = tiny_bench("full", "snapkv", new_tokens=(1,))
    with Journal.start(tmp_path / "runs.jsonl", bench.describe()) as journal:
        rows = run_bench(bench, journal)
        failed = [row for row in rows if row["policy"] == STOCK]
        assert tried == [STOCK]
        assert [{name: row[name] for name in UNMEASURED} for row in failed] == [UNMEASURED] * 2
        assert all(row["error"].startswith("1 x 40 tokens do not fit on cpu") for row in failed)
        assert all(row["error"] is None for row in rows if row["policy"] != STOCK)
        for row in rows:
            BenchRowCheck(bench)(row)
        record = bench_record(bench, rows, budget_seconds(bench), Speed(1, None))
        assert record["is_complete"]
        first = record["cells"][0]
        assert (first["repeats"], first["prefill_s"], first["latency_s"], first["peak_bytes"]) == (0, None, None, None)
        assert record["cells"][1]["over_transformers"]["prefill_s"] is None
        monkeypatch.setattr(Bench, "_stock", stock)
        assert all(row["error"] is None for row in run_bench(bench, journal))


def test_a_cache_beyond_the_free_memory_is_refused_before_the_system_promises_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = tiny_bench("full", "snapkv", lengths=(64,))
    monkeypatch.setattr(
        "headprobe.evaluation.costs.bench.free_bytes", lambda device: 64 * 512 - 1
    )  # 512 bytes per token
    full, snapkv = (next(cell for cell in bench.cells() if cell.policy == name) for name in ("full", "snapkv"))
    with pytest.raises(DeviceMemoryError, match="keys and values take 0.0 GiB, 0.0 GiB are free on cpu"):
        bench.measure(full)
    assert bench.measure(snapkv).kept_bytes == 16 * 512  # one layer's 64 tokens, and what is kept


def test_weights_beyond_the_free_memory_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "free_bytes", lambda device: 2**30)
    with pytest.raises(DeviceMemoryError, match=r"weights of llama3-8b take 15.0 GiB on cpu, 1.0 GiB are free"):
        Subject.of_shape(SHAPES["llama3-8b"], CPU, "bfloat16", ())


# -- what rows come to ------------------------------------------------------------------------------------------------


def test_medians_and_ratios_to_the_full_cache_by_hand() -> None:
    stock, full, snapkv = cells(STOCK, FULL, "snapkv")
    rows = [made_row(stock, 0, 5.0, [5.0, 9.0]), made_row(full, 0, 10.0, [10.0, 30.0])]
    rows.append(made_row(full, 1, 10.0, [10.0, 30.0]))
    rows += [
        made_row(snapkv, repeat, prefill, [prefill, prefill + 10.0], peak_bytes=25, kv_bytes=10, kept_bytes=300)
        for repeat, prefill in enumerate((12.0, 11.0, 99.0))
    ]
    found = {cell["policy"]: cell for cell in summarize([stock, full, snapkv], rows, Speed(700, 400.0))}
    own = found["snapkv"]
    assert (own["prefill_s"], own["prefill_range_s"], own["latency_s"]) == (12.0, [11.0, 99.0], [12.0, 22.0])
    assert own["s_per_token"] == [None, 2.5]
    assert (own["compression_s"], own["compression_range_s"]) == (1.5, [1.0, 2.0])  # of the two repeats of both
    assert own["over_full"] == {
        "prefill_s": 1.2, "peak_bytes": 0.25, "kv_bytes": 0.2, "latency_s": [1.2, pytest.approx(22 / 30)],
        "s_per_token": [None, 0.5],
    }  # fmt: skip
    assert own["over_transformers"]["prefill_s"] == 2.4
    assert (own["floor_s"], own["over_floor"]) == (2.5, 1.0)  # (700 + 300) bytes at 400 a second
    assert (found["full"]["over_full"], found["full"]["compression_s"]) == (None, None)


def test_a_policy_is_compared_with_the_full_cache_on_its_own_kernel() -> None:
    full, other = Cell(FULL, None, 64, 1, "auto", (1,)), Cell(FULL, None, 64, 1, "triton", (1,))
    h2o, snapkv = Cell("h2o", 8, 64, 1, "auto", (1,)), Cell("snapkv", 8, 64, 1, "auto", (1,))
    rows = [
        made_row(full, 0, 2.0, [2.0], kernel="flash4"), made_row(other, 0, 8.0, [8.0], kernel="triton"),
        made_row(h2o, 0, 4.0, [4.0], kernel="triton"), made_row(snapkv, 0, 4.0, [4.0], kernel="flash4"),
    ]  # fmt: skip
    found = summarize([full, other, h2o, snapkv], rows, Speed(1, None))
    assert [cell["over_full"]["prefill_s"] for cell in found[2:]] == [0.5, 2.0]
    assert [cell["compression_s"] for cell in found[2:]] == [-4.0, 2.0]
    assert [cell["over_floor"] for cell in found] == [None] * 4


def test_a_budget_that_holds_the_whole_prompt_is_said_so() -> None:
    bench = tiny_bench("full", "snapkv", budgets=(16, 40))
    assert bench.remarks() == ["a budget of 40 holds all of 40 tokens: nothing is evicted there"]
    assert [cell["keeps_all"] for cell in summarize(bench.cells(), [], Speed(1, None))] == [False, False, False, True]


def test_budgets_are_timed_for_the_model_and_for_a_table_of_80_by_64_heads() -> None:
    found = budget_seconds(tiny_bench(budgets=(16, 32)))
    assert [(row["policy"], row["budget"]) for row in found] == [
        ("snapkv", 16), ("snapkv", 32), ("headkv-r2", 16), ("headkv-r2", 32),
    ]  # fmt: skip
    assert {(row["model_s"], row["large_table_s"], tuple(row["large_table"])) for row in found} == {
        (1.0, 1.0, (80, 64))
    }


def test_random_scores_stand_for_missing_ones_of_a_shape_and_the_same_seed_gives_the_same() -> None:
    policies = [make_policy(name) for name in POLICIES]
    one, again, other = (contenders_of_shape(TINY, policies, (), "mean", seed)[2] for seed in (3, 3, 4))
    assert np.array_equal(one.table, again.table)
    assert not np.array_equal(one.table, other.table)
    assert np.array_equal(one.table, uneven_scores(2, 2, 3))
    assert one.source == "random, seed 3"
    assert one.remark == "headkv-r2 runs on random head scores (seed 3): a shape has none of its own"
    assert [each.remark for each in contenders_of_shape(TINY, policies[:2], (), "mean", 0)] == [None, None]


def test_a_cpu_has_no_copy_bandwidth_to_compare_with() -> None:
    assert copy_bandwidth(CPU) is None


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budgets": (0,)}, "a budget of 0 entries per KV head is too small"),
        ({"batches": (0,)}, "a batch of 0 is too small"),
        ({"repeats": 0}, "--repeats is 0, need 1 to 1000"),
        ({"new_tokens": (4, 1)}, "--new-tokens 4, 1: need rising numbers from 1 on"),
        ({"new_tokens": (0, 1)}, "--new-tokens 0, 1: need rising numbers from 1 on"),
        ({"lengths": (40, 40)}, "lengths 40, 40 hold a number twice"),
        ({"decode_at": (41,)}, "--decode-at 41 is none of the lengths 40"),
        ({"attention": "nope"}, "unknown attention kernel 'nope'"),
        ({"prefill_chunk": 0}, "a prefill chunk of 0 tokens is too small"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BenchOptions(**({"budgets": (16,), "lengths": (40,)} | options))


def test_prompt_and_answer_beyond_the_window_are_refused() -> None:
    subject = Subject(tiny_bench().subject.model, "toy", False, 42, (Contender(make_policy("full")),))
    with pytest.raises(PlanError, match="length 43 is beyond the model's window of 42 tokens"):
        Bench(subject, BenchOptions((16,), (40,), new_tokens=(1, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prefill_s": -1.0}, "its prefill_s is -1.0"),
        ({"latency_s": [1.0]}, r"its latency_s are \[1.0\], need a time for each of \[1, 3\]"),
        ({"kernel": None}, "its kernel is None"),
        ({"kv_bytes": 1.5}, "its kv_bytes is 1.5"),
        ({"budget": 17}, "its budget is 17, the bench has 16"),
        ({"trial": "none"}, "the bench has no such run"),
        ({"error": "no memory"}, "a run with an error has measured nothing"),
        ({"more": 1}, "its fields are not those of a run"),
    ],
)
def test_a_damaged_row_is_found_when_a_run_is_resumed(change: Row, message: str) -> None:
    bench = tiny_bench("full", "snapkv")
    row = made_row(bench.cells()[2], 1, 1.0, [1.0, 2.0])
    BenchRowCheck(bench)(row)
    with pytest.raises(ValueError, match=message):
        BenchRowCheck(bench)(row | change)

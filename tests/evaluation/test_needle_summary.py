from __future__ import annotations

import json

from headprobe.evaluation.needle_summary import GridSummary
from headprobe.evaluation.summaries import CellKey
from headprobe.scores.uncertainty import Estimate
from tests.evaluation.grid_rows import row, small_grid


def summary() -> GridSummary:
    return GridSummary(small_grid())


def test_cells_come_in_the_order_of_the_rows() -> None:
    assert [(key.name, key.budget) for key in summary().keys] == [
        ("full", None), ("snapkv", 16), ("snapkv", 64), ("headkv-r2", 16), ("headkv-r2 (random)", 16),
        ("headkv-r2 (shuffled)", 16),
    ]  # fmt: skip


def test_a_cell_holds_means_and_paired_differences() -> None:
    cell = summary().cell(CellKey("headkv-r2", "real", 16))
    assert (cell.num_prompts, cell.num_errors) == (2, 0)
    assert cell.exact_match.mean == 1.0
    assert cell.minus_full["exact_match"].mean == 0.0
    assert cell.minus_random is not None
    assert cell.minus_random["exact_match"].mean == 1.0
    assert cell.minus_shuffled is not None
    assert cell.minus_shuffled["answer_f1"].mean == 0.5
    assert (cell.kv_bytes_asked, cell.kv_bytes, cell.ttft_s, cell.s_per_token) == (100, 120, 2.0, 0.5)


def test_the_wrong_sentence_is_counted() -> None:
    cell = summary().cell(CellKey("snapkv", None, 16))
    assert (cell.chose_answer.mean, cell.chose_distractor.mean) == (0.0, 1.0)


def test_policies_without_scores_have_no_baseline() -> None:
    cell = summary().cell(CellKey("snapkv", None, 16))
    assert cell.minus_random is None
    assert cell.minus_shuffled is None


def test_what_ran_out_of_memory_is_null_and_never_zero() -> None:
    found = summary()
    key = CellKey("snapkv", None, 64)
    cell = found.cell(key, length=512)
    assert (cell.num_prompts, cell.num_errors) == (0, 1)
    assert cell.exact_match == Estimate(None, None, None, 0)
    assert (cell.kv_bytes, cell.ttft_s) == (None, None)
    assert found.place(key, 512, 50.0) is None
    assert found.cell(key).exact_match == Estimate(1.0, None, None, 1)


def test_differences_are_taken_on_the_prompts_that_both_have() -> None:
    rows = (row("p", "full", None, True), row("q", "full", None, False), row("q", "snapkv", 8, True))
    cell = GridSummary(rows).cell(CellKey("snapkv", None, 8))
    assert cell.minus_full["exact_match"] == Estimate(1.0, None, None, 1)


def test_lengths_are_told_apart() -> None:
    found = summary()
    shuffled = CellKey("headkv-r2", "shuffled", 16)
    assert [found.cell(shuffled, length).exact_match.mean for length in (256, 512)] == [0.0, 1.0]
    assert found.cell(shuffled).exact_match.mean == 0.5


def test_the_record_is_json_with_every_place_of_the_grid() -> None:
    record = json.loads(json.dumps(summary().record(), allow_nan=False))
    assert (record["lengths"], record["depths"], record["budgets"]) == ([256, 512], [0.0, 50.0], [16, 64])
    assert len(record["cells"]) == 6
    assert len(record["cells_by_length"]) == 12
    assert len(record["grid"]) == 6 * 2 * 2
    assert record["grid"][1] == {
        "policy": "full", "scores": None, "budget": None, "length": 256, "depth": 50.0, "exact_match": None,
        "answer_f1": None,
    }  # fmt: skip

"""Each estimator on rows small enough to count by hand. Weights: one head, one row unless said otherwise."""

from __future__ import annotations

import pytest
import torch

from headprobe.attention.rows import AttentionRows, largest, mass_inside
from headprobe.errors import OptionError
from headprobe.profiling.estimators import ESTIMATORS, estimators
from headprobe.profiling.estimators.estimator import Gate, Target, method_block
from headprobe.scores.provenance import METHODS
from headprobe.spans import Span

TARGET = Target(input_ids=(10, 11, 12, 13, 14, 15), answer_span=Span(1, 3), distractor_span=Span(4, 6))


def rows(*weights: list[float], values: list[float] | None = None) -> AttentionRows:
    table = torch.tensor([list(weights)])
    norms = torch.tensor(values or [1.0] * table.shape[-1])
    return AttentionRows(0, table, norms[None, :, None])


def trial(name: str, found: AttentionRows, produced: list[int], target: Target = TARGET) -> float:
    estimator = ESTIMATORS[name]
    evidence = torch.stack([estimator.evidence(found, target)])
    return float(estimator.trial_scores(evidence, target, produced)[0, 0])


def test_r2_adds_the_answers_share_of_the_top_n_and_divides_by_n() -> None:
    # N = 2: the two largest are 0.4 (position 2, in the answer) and 0.3 (position 5, outside), 0.1 at 1 is not.
    assert trial("r2", rows([0.1, 0.1, 0.4, 0.05, 0.05, 0.3]), [12]) == pytest.approx(0.4 / 2)


def test_r2_sums_over_the_steps() -> None:
    found = rows([0.0, 0.5, 0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.9, 0.1, 0.0, 0.0])
    assert trial("r2", found, [11, 12]) == pytest.approx((1.0 + 0.9) / 2)


def test_enhanced_has_the_formula_of_r2() -> None:
    found = rows([0.1, 0.1, 0.4, 0.05, 0.05, 0.3])
    assert trial("enhanced", found, [12]) == trial("r2", found, [12])


def test_retrieval_counts_an_argmax_on_the_very_token_that_is_produced() -> None:
    found = rows([0.0, 0.9, 0.1, 0.0, 0.0, 0.0], [0.0, 0.2, 0.8, 0.0, 0.0, 0.0])
    assert trial("retrieval", found, [11, 12]) == 1.0
    assert trial("retrieval", found, [11, 99]) == 0.5


def test_retrieval_ignores_the_right_token_outside_the_answer() -> None:
    target = Target((10, 11, 12, 11, 14, 15), Span(1, 3), None)
    assert trial("retrieval", rows([0.0, 0.3, 0.0, 0.7, 0.0, 0.0]), [11], target) == 0.0


def test_contrast_subtracts_the_distractors_mass() -> None:
    assert trial("contrast", rows([0.0, 0.6, 0.0, 0.0, 0.4, 0.0]), [11]) == pytest.approx((0.6 - 0.4) / 2)


def test_contrast_without_a_distractor_is_an_error() -> None:
    with pytest.raises(OptionError, match="needs needles with a distractor"):
        trial("contrast", rows([0.0, 0.6, 0.0, 0.0, 0.4, 0.0]), [11], Target((1,) * 6, Span(1, 3), None))


def test_value_weighs_by_the_norm_of_the_values_and_renormalises() -> None:
    # weighted 0.5*0, 0.3*2, 0.2*1 -> shares 0, 0.75, 0.25; the top two are both in the answer.
    found = rows([0.5, 0.3, 0.2, 0.0, 0.0, 0.0], values=[0.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    assert trial("value", found, [11]) == pytest.approx(1.0 / 2)


def test_value_survives_rows_of_zero_norm() -> None:
    assert trial("value", rows([1.0, 0.0, 0.0, 0.0, 0.0, 0.0], values=[0.0] * 6), [11]) == 0.0


def test_value_norms_go_to_the_query_heads_that_share_them() -> None:
    weights = torch.tensor([[[0.5, 0.5]]] * 4)
    values = torch.tensor([[[1.0], [1.0]], [[3.0], [1.0]]])
    target = Target((1, 2), Span(0, 1), None)
    evidence = ESTIMATORS["value"].evidence(AttentionRows(0, weights, values), target)
    assert evidence[:, 0].tolist() == pytest.approx([0.5, 0.5, 0.75, 0.75])


def test_the_answer_longer_than_the_row_takes_the_whole_row() -> None:
    assert float(mass_inside(largest(torch.tensor([0.2, 0.8]), 5), Span(0, 5))) == pytest.approx(1.0)


def test_methods_are_chosen_by_name_in_order_and_once() -> None:
    assert [e.name for e in estimators("retrieval, r2,retrieval")] == ["retrieval", "r2"]


@pytest.mark.parametrize("names", ["r3", "r2,nope", "", ","])
def test_an_unknown_method_lists_the_known_ones(names: str) -> None:
    with pytest.raises(OptionError, match="choose from r2, retrieval, enhanced, contrast, value"):
        estimators(names)


def test_the_method_block_tells_gate_and_threshold() -> None:
    assert method_block(ESTIMATORS["retrieval"]).parameters["gate"]["metric"] == "rouge1_recall"


def test_facts_that_readers_know_by_name_are_not_written_into_files() -> None:
    assert {name: ESTIMATORS[name].facts for name in ESTIMATORS.ours} == dict(METHODS)
    assert all("scores" not in method_block(ESTIMATORS[name]).parameters for name in METHODS)


def test_normalisation_names_the_clipping_of_negative_scores() -> None:
    texts = {name: method_block(ESTIMATORS[name]).parameters["normalisation"] for name in ("r2", "contrast")}
    assert texts == {"r2": "L1 over all heads", "contrast": "L1 over all heads after clipping at 0"}


def test_a_gate_knows_two_metrics() -> None:
    with pytest.raises(OptionError, match="the gate's metric is 'bleu', need one of f1, rouge1_recall"):
        Gate("bleu")

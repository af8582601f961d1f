"""Each estimator on rows small enough to count by hand. Weights: one head, one row unless said otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from headprobe.attention.rows import AttentionRows, largest, mass_inside
from headprobe.errors import ModelError, OptionError
from headprobe.profiling.estimators import ESTIMATORS, estimators
from headprobe.profiling.estimators.estimator import (
    ANSWERED_GATE,
    F1_GATE,
    PUBLISHED_GATE,
    ROUGE_GATE,
    Gate,
    Target,
    method_block,
    prompts_of,
    rows_of,
)
from headprobe.profiling.estimators.hits import PUBLISHED_RETRIEVAL
from headprobe.profiling.estimators.logit import Unembedding
from headprobe.profiling.gathering import passed
from headprobe.scores.provenance import METHODS, MethodFacts, facts_of
from headprobe.spans import Span
from tests.tiny_models import tiny_model

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


@pytest.mark.parametrize("name", ["r2", "retrieval", "enhanced", "contrast", "value"])
def test_the_method_block_states_gate_and_threshold(name: str) -> None:
    block = method_block(ESTIMATORS[name])
    gate = block.parameters["gate"]
    assert (block.version, gate["metric"], gate["threshold"]) == (2, "deciding_words", 0.5)
    assert "neither in the question, nor in the distractor, nor in the other facts" in gate["rule"]
    assert "read on, unscored, up to twice as many" in block.parameters["steps"]


def test_the_published_rule_states_its_own_gate_and_steps() -> None:
    block = method_block(PUBLISHED_RETRIEVAL)
    assert block.parameters["gate"] == {"metric": "rouge1_recall", "threshold": 0.5}
    assert (block.name, block.parameters["steps_rule"]) == ("retrieval", "published")
    assert block.parameters["steps"].startswith("50, past")
    assert facts_of("retrieval", block.parameters) == MethodFacts(0.0, None, "count")
    assert facts_of("retrieval", method_block(ESTIMATORS["retrieval"]).parameters).most == 1.0


def test_other_gates_refuse_what_is_closer_to_the_distractor() -> None:
    record = {"f1": 0.8, "rouge1_recall": 0.8, "deciding_words": 0.0, "chose": "distractor"}
    assert [passed(record, gate) for gate in (F1_GATE, ROUGE_GATE, PUBLISHED_GATE)] == [False, False, True]
    assert passed(record | {"deciding_words": 0.51}, ANSWERED_GATE)
    assert not passed(record | {"deciding_words": 0.5}, ANSWERED_GATE)
    assert not passed({"skipped": "out of memory"}, ANSWERED_GATE)


def test_facts_that_readers_know_by_name_are_not_written_into_files() -> None:
    assert {name: ESTIMATORS[name].facts for name in ESTIMATORS.ours} == dict(METHODS)
    assert all("scores" not in method_block(ESTIMATORS[name]).parameters for name in METHODS)


def test_normalisation_names_the_clipping_of_negative_scores() -> None:
    texts = {name: method_block(ESTIMATORS[name]).parameters["normalisation"] for name in ("r2", "contrast")}
    assert texts == {"r2": "L1 over all heads", "contrast": "L1 over all heads after clipping at 0"}


def test_a_gate_knows_three_metrics() -> None:
    with pytest.raises(OptionError, match="the gate's metric is 'bleu', need one of deciding_words, f1, rouge1_recall"):
        Gate("bleu")


# -- detectors of other papers ----------------------------------------------------------------------------------------


def test_mass_adds_all_attention_on_the_answer_without_the_rule_of_the_top_n() -> None:
    # 0.1 at position 1 is not among the two largest, and counts all the same.
    assert trial("mass", rows([0.1, 0.1, 0.4, 0.05, 0.05, 0.3]), [12]) == pytest.approx((0.1 + 0.4) / 2)


def test_qr_subtracts_the_null_question_and_averages_over_tokens() -> None:
    target = replace(TARGET, question_span=Span(3, 5))
    asked = rows([0.0, 0.3, 0.3, 0.4, 0.0, 0.0], [0.2, 0.2, 0.0, 0.2, 0.4, 0.0])  # masses 0.6 and 0.2
    nothing = rows([0.9, 0.05, 0.05, 0.0, 0.0, 0.0])  # mass 0.1
    estimator = ESTIMATORS["qr"]
    evidence = torch.cat([estimator.evidence(found, target) for found in (asked, nothing)], 1)[None]
    assert float(estimator.trial_scores(evidence, target, [])) == pytest.approx((0.6 + 0.2) / 2 - 0.1)


class Directions:
    """Token `y` is read off in the direction `(y, 1)`."""

    def logits(self, outputs: torch.Tensor, tokens: list[int]) -> torch.Tensor:
        return torch.stack([outputs[:, :, t] @ torch.tensor([float(y), 1.0]) for t, y in enumerate(tokens)], 2)


def test_logit_subtracts_what_other_positions_add_scaled_to_the_answers_length() -> None:
    # Row over 4 positions, answer at 1 and 2 (values (1, 0) and (0, 1)), others (0, 2) and (2, 0); token 3.
    weights = torch.tensor([[[0.1, 0.4, 0.3, 0.2]]])
    values = torch.tensor([[[0.0, 2.0], [1.0, 0.0], [0.0, 1.0], [2.0, 0.0]]])
    target = Target((0, 0, 0, 0), Span(1, 3), None, output=Directions())
    evidence = ESTIMATORS["logit"].evidence(AttentionRows(0, weights, values), target)[None]
    inside, outside = 0.4 * 3 + 0.3 * 1, 0.1 * 2 + 0.2 * 6
    found = float(ESTIMATORS["logit"].trial_scores(evidence, target, [3]))
    assert found == pytest.approx((inside - 2 / 2 * outside) / 2)


def test_logit_scales_by_the_positions_that_each_row_sees() -> None:
    # Two rows over 5 keys: the first sees 4 positions (2 outside the answer), the second 5 (3 outside).
    weights = torch.tensor([[[0.5, 0.0, 0.0, 0.5, 0.0], [0.5, 0.0, 0.0, 0.0, 0.5]]])
    values = torch.ones(1, 5, 2)
    target = Target((0,) * 5, Span(1, 3), None, output=Directions())
    evidence = ESTIMATORS["logit"].evidence(AttentionRows(0, weights, values), target)
    assert evidence[0, :, 0].tolist() == pytest.approx([-2 / 2, -2 / 3])


COPIED = Target((9, 1, 2, 1, 2, 1, 2), Span(1, 3), None, again_span=Span(3, 7))


def reading_trial(name: str, *blocks: torch.Tensor) -> float:
    """The score from blocks of rows `[R, keys]` of one head."""
    estimator, gathered = ESTIMATORS[name], None
    for block in blocks:
        found = estimator.evidence(AttentionRows(0, block[None], torch.ones(1, block.shape[1], 1)), COPIED)[None]
        gathered = found if gathered is None else estimator.merge(gathered, found)
    return float(estimator.trial_scores(gathered, COPIED, ()))


def positions(*marked: dict[int, float], first: int) -> torch.Tensor:
    """Rows of the queries at `first` and behind it, with these weights."""
    table = torch.zeros(len(marked), first + len(marked))
    for row, weights in enumerate(marked):
        for position, weight in weights.items():
            table[row, position] = weight
    return table


def test_echo_and_induction_add_over_all_earlier_copies() -> None:
    # Copies of two tokens from position 1 on; queries at 3, 4 | 5, 6. Echo: 3 -> 1; 4 -> 2; 5 -> 3, 1; 6 -> 4, 2.
    first = positions({1: 0.5, 2: 0.25}, {2: 0.5, 3: 0.125}, first=3)
    second = positions({3: 0.25, 1: 0.25, 4: 0.5}, {0: 1.0}, first=5)
    assert reading_trial("echo", first, second) == pytest.approx((0.5 + 0.5 + 0.5 + 0.0) / 4)
    # Induction: 3 -> 2; 4 -> 3; 5 -> 4, 2; 6 -> 5, 3.
    assert reading_trial("induction", first, second) == pytest.approx((0.25 + 0.125 + 0.5 + 0.0) / 4)


def test_reconstruction_takes_the_most_attention_of_each_entry_and_averages() -> None:
    first = positions({1: 0.5, 2: 0.25}, {1: 0.25, 0: 0.75}, first=3)
    second = positions({1: 0.125, 2: 0.5}, {3: 1.0}, first=5)
    assert reading_trial("reconstruction", first, second) == pytest.approx((0.5 + 0.5) / 2)


def test_methods_without_a_gate_say_that_every_trial_counts() -> None:
    told = {name: method_block(ESTIMATORS[name]).parameters for name in ("qr", "echo", "mass")}
    assert (told["qr"]["gate"], told["qr"]["counts"]) == (None, "every trial")
    assert (told["echo"]["gate"], told["echo"]["counts"]) == (None, "every trial: nothing is asked")
    assert "counts" not in told["mass"]


def test_a_method_that_does_not_say_which_rows_it_wants_gets_those_of_the_answer() -> None:
    class Theirs:
        name = "theirs"

    assert (rows_of(Theirs()), prompts_of(Theirs())) == ("answer", "needles")  # type: ignore[arg-type]


def test_logits_need_projections_that_are_plain_matrices() -> None:
    model = tiny_model("llama")
    model.model.layers[1].self_attn.o_proj = torch.nn.Identity()
    with pytest.raises(ModelError, match="LlamaForCausalLM are not plain matrices .* 'logit' cannot be taken"):
        Unembedding(model)

from __future__ import annotations

import torch

from headprobe.models.weights import weights_fingerprint


def test_any_training_changes_the_fingerprint() -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 5)
    before = weights_fingerprint(model)
    assert weights_fingerprint(model) == before
    with torch.no_grad():
        model.weight[4, 2] += 0.1
    assert weights_fingerprint(model) != before


def test_shapes_and_names_count() -> None:
    one, other = torch.nn.Linear(2, 3, bias=False), torch.nn.Linear(3, 2, bias=False)
    with torch.no_grad():
        one.weight.fill_(1.0)
        other.weight.fill_(1.0)
    assert weights_fingerprint(one) != weights_fingerprint(other)
    assert weights_fingerprint(one) != weights_fingerprint(torch.nn.Sequential(one))


def test_weights_stored_in_half_precision_keep_their_fingerprint_when_loaded_in_single() -> None:
    torch.manual_seed(0)
    half = torch.nn.Linear(40, 30, dtype=torch.bfloat16)
    before = weights_fingerprint(half)
    assert weights_fingerprint(half.float()) == before

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from jsonschema import Draft202012Validator

from headprobe.scores.causal import with_causal
from headprobe.scores.score_file import from_payload, schema_text, score_file_bytes, score_file_schema
from tests.scores.test_causal import result

WRONG = (None, True, 7, 2.5, -1, "text", [], {}, [["text"]], [[True]], [[2e6]])


def accepts_schema(payload):
    return Draft202012Validator(score_file_schema()).is_valid(payload)


def accepts_reader(payload):
    try:
        from_payload(payload)
    except ValueError:
        return False
    return True


def places(value, way=()):
    """The way to every field of every object (of lists, to the first item)."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*way, key)
            yield from places(item, (*way, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict | list):
        yield from places(value[0], (*way, 0))


def holder(payload, way):
    for key in way[:-1]:
        payload = payload[key]
    return payload


def test_the_schema_is_a_valid_schema():
    Draft202012Validator.check_schema(score_file_schema())
    assert json.loads(schema_text()) == score_file_schema()


@pytest.mark.parametrize("with_trial_scores", [True, False])
def test_what_is_written_follows_the_schema(toy_scores, with_trial_scores):
    payload = json.loads(score_file_bytes(toy_scores, with_trial_scores))
    assert [error.message for error in Draft202012Validator(score_file_schema()).iter_errors(payload)] == []


def test_every_field_that_is_written_is_described(toy_scores):
    file = {"file": "m.gguf", "sha256": "0" * 64, "types": {"Q4_K": 3}, "packages": "m 1.0"}
    held = {"quant_method": "torchao"}
    owner = replace(toy_scores.provenance.model, weights_sha256="0" * 64, gguf=file, quantization=held)
    full = with_causal(replace(toy_scores, provenance=replace(toy_scores.provenance, model=owner)), result())
    payload, schema = json.loads(score_file_bytes(full)), score_file_schema()
    assert set(payload) == set(schema["properties"])
    for block in ("model", "tokenizer", "method", "probes", "scores"):
        assert set(payload[block]) == set(schema["properties"][block]["properties"])
    optional = {
        "rouge1_recall",
        "deciding_words",
        "chose",
        "num_read",
        "depth_reached",
    }  # what the scoring stage adds to a trial
    assert set(payload["trials"][0]) | optional == set(schema["properties"]["trials"]["items"]["properties"])


def test_what_the_schema_refuses_the_reader_refuses(toy_scores):
    file = {"file": "m.gguf", "sha256": "0" * 64, "types": {"Q4_K": 3}, "packages": None}
    owner = replace(toy_scores.provenance.model, gguf=file)
    model = replace(toy_scores.provenance, model=owner)
    payload = json.loads(score_file_bytes(with_causal(replace(toy_scores, provenance=model), result())))
    seen = 0
    for way in places(payload):
        if way in {("schema",), ("id",)}:  # checked by read_score_file before and after
            continue
        for wrong in WRONG:
            changed = copy.deepcopy(payload)
            holder(changed, way)[way[-1]] = wrong
            if not accepts_schema(changed):
                seen += 1
                assert not accepts_reader(changed), (way, wrong)
    assert seen > 200


def test_what_is_missing_for_the_schema_is_missing_for_the_reader(toy_scores):
    payload = json.loads(score_file_bytes(with_causal(toy_scores, result())))
    for way in places(payload):
        if way in {("schema",), ("id",)}:
            continue
        changed = copy.deepcopy(payload)
        del holder(changed, way)[way[-1]]
        assert accepts_schema(changed) == accepts_reader(changed), way

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headprobe.errors import FileFormatError
from headprobe.scores.score_file import load_scores, read_score_file, score_file_bytes


def setting(*keys_and_value):
    *keys, last, value = keys_and_value

    def change(payload):
        for key in keys:
            payload = payload[key]
        payload[last] = value

    return change


def without(*keys):
    *way, last = keys

    def change(payload):
        for key in way:
            payload = payload[key]
        del payload[last]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (setting("schema", "headprobe/2"), "written as headprobe/2, this headprobe reads up to headprobe/1"),
        (setting("schema", "headprobe/0"), r"not a headprobe score file \(its schema is 'headprobe/0'\)"),
        (setting("schema", "other"), r"not a headprobe score file \(its schema is 'other'\)"),
        (setting("schema", 1), r"not a headprobe score file \(its schema is 1\)"),
        (without("schema"), "not a headprobe score file$"),
        (without("model"), "model is missing"),
        (without("model", "head_dim"), "model.head_dim is missing"),
        (setting("model", []), "model is an array of 0, need an object"),
        (setting("model", "id", None), "model.id is null, need a text"),
        (setting("model", "num_hidden_layers", True), "model.num_hidden_layers is true, need a whole number"),
        (setting("model", "num_hidden_layers", 10**12), "1 layer types for 1000000000000 layers"),
        (setting("model", "num_attention_heads", 0), "model.num_attention_heads is 0, need at least 1"),
        (setting("model", "num_attention_heads", 10**12), r"is an array of 2, need an array of 1000000000000 heads"),
        (setting("model", "num_key_value_heads", 3), "2 query heads cannot be shared evenly by 3 KV heads"),
        (setting("model", "layer_types", [1]), "model.layer_types must hold texts only"),
        (setting("tokenizer", {}), "tokenizer.id is missing"),
        (without("tokenizer"), "tokenizer is missing"),
        (setting("method", "version", 0), "method.version is 0, need at least 1"),
        (setting("method", "version", 1.5), "method.version is 1.5, need a whole number"),
        (setting("method", "parameters", None), "method.parameters is null, need an object"),
        (setting("probes", "lengths", ["1k"]), r"probes.lengths\[0\] is '1k', need a number"),
        (setting("probes", "depths", [101]), r"probes.depths\[0\] is 101, need 0 to 100"),
        (setting("probes", "needles", {"sha256": ""}), "probes.needles.name is missing"),
        (setting("probes", "haystack", {"name": "x", "repeats": "no"}), "probes.haystack.repeats is 'no'"),
        (setting("probes", "seed", "0"), "probes.seed is '0', need a whole number"),
        (setting("trials", {}), "trials is an object, need an array"),
        (setting("trials", [5]), r"trials\[0\] is 5, need an object"),
        (setting("trials", 0, "depth", 100.5), r"trials\[0\].depth is 100.5, need 0 to 100"),
        (setting("trials", 0, "f1", -1), r"trials\[0\].f1 is -1, need 0 to 1"),
        (setting("trials", 0, "passed", 1), r"trials\[0\].passed is 1, need true or false"),
        (setting("trials", 0, "passed", False), "scores.num_passed is 1, the trials give 0"),
        (setting("trials", []), "trial_scores is an array of 1, need one for each of 0 trials"),
        (setting("scores", "num_trials", 9), "scores.num_trials is 9, the trials give 1"),
        (setting("scores", "num_passed", 0), "scores.num_passed is 0, need at least 1"),
        (setting("scores", "mean", [[0.25]]), r"scores.mean\[0\] is an array of 1, need an array of 2 heads"),
        (setting("scores", "mean", [[0.25, 1.0]] * 2), "scores.mean is an array of 2, need an array of 1 layers"),
        (setting("scores", "mean", [["0.25", 1.0]]), r"scores.mean\[0\]\[0\] is '0.25', need a number"),
        (setting("scores", "mean", [[True, 1.0]]), r"scores.mean\[0\]\[0\] is true, need a number"),
        (setting("scores", "mean", [[1e300, 1.0]]), r"scores.mean holds a score beyond \+-1e\+06"),
        (setting("scores", "mean", [[0.3, 1.2]]), r"scores.mean\[0\]\[0\] is 0.3, trial_scores gives 0.25"),
        (setting("scores", "std", [[0.0, 0.5]]), r"scores.std\[0\]\[1\] is 0.5, trial_scores gives 0.0"),
        (setting("scores", "normalized", [[0.5, 0.5]]), r"scores.normalized\[0\]\[0\] is 0.5, mean gives 0.2"),
        (setting("trial_scores", [[[1, 2, 3]]]), r"trial_scores\[0\]\[0\] is an array of 3, need an array of 2 heads"),
        (setting("trial_scores", None), "trial_scores is null, need an array"),
        (setting("environment", []), "environment is an array of 0, need an object"),
        (setting("created_at", "yesterday"), "created_at is 'yesterday', need ISO 8601 in UTC"),
        (setting("model", "id", "\ud800"), "lone surrogate"),
        (setting("environment", {"x": 10**30}), r"an integer is larger than 2\*\*64"),
    ],
)
def test_broken_fields_are_named(broken, change, message):
    with pytest.raises(FileFormatError, match=message):
        read_score_file(broken(change))


def test_negative_deviations_are_refused_without_trial_scores_too(broken):
    def change(payload):
        del payload["trial_scores"]
        payload["scores"]["std"] = [[-0.5, 0.0]]

    with pytest.raises(FileFormatError, match=r"scores.std holds -0.5, need at least 0"):
        read_score_file(broken(change))


def test_twice_the_same_trial_is_refused(broken):
    def change(payload):
        payload["trials"] *= 2
        del payload["trial_scores"]

    with pytest.raises(FileFormatError, match="repeated trial ids: 'a@64@0'"):
        read_score_file(broken(change))


def test_changed_content_no_longer_has_its_id(broken):
    changed = broken(setting("trials", 0, "response", "another"), fix_id=False)
    with pytest.raises(FileFormatError, match=r"does not match the content .*changed or damaged"):
        read_score_file(changed)


@pytest.mark.parametrize(
    ("number", "told"), [("NaN", "nan"), ("Infinity", "inf"), ("-Infinity", "-inf"), ("1e999", "inf")]
)
def test_non_finite_numbers_are_refused_by_field(broken, number, told):
    path = broken(setting("scores", "mean", [[0.25, "BAD"]]), encode=lambda p: json.dumps(p).replace('"BAD"', number))
    with pytest.raises(FileFormatError, match=rf"scores.mean\[0\]\[1\] is {told}; numbers must be finite"):
        read_score_file(path)


def test_non_finite_numbers_are_refused_in_the_environment_too(broken):
    path = broken(lambda p: None, encode=lambda p: json.dumps(p).replace('"x"', '{"a\\nb": [NaN]}'))
    with pytest.raises(FileFormatError, match=r"environment.os.'a\\nb'\[0\] is nan"):
        read_score_file(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"x.json:1: not JSON: Expecting value \(column 1\)"),
        (b"{\n\n  'a': 1}", r"x.json:3: not JSON: Expecting property name.*\(column 3\)"),
        (b'{\n"a": 1,\n"a": 2}', "x.json: the key 'a' occurs twice in one object"),
        (b'{"b": {"k\\ney": 1, "k\\ney": 1}}', r"the key 'k\\ney' occurs twice"),
        (b'{"a":\n "\xff"}', "x.json:2: byte 8 is not UTF-8"),
        (b"\xef\xbb\xbf{}", "x.json:1: not JSON: Unexpected UTF-8 BOM"),
        (b"\xff\xfe{\x00}\x00", "x.json:1: byte 0 is not UTF-8"),
        (b"[" * 1_000_000, "nested deeper than 32 levels"),
        (b'{"a":' * 200_000 + b"1" + b"}" * 200_000, "nested deeper than 32 levels"),
        (b'{"schema": "headprobe/1", "deep": ' + b"[" * 40 + b"]" * 40 + b"}", "nested deeper than 32 levels"),
        (b"[]", "not a headprobe score file"),
        (b"null", "not a headprobe score file"),
        (b'"headprobe/1"', "not a headprobe score file"),
        (b'{"schema": "headprobe/1"}', "model is missing"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Exceeds the limit"),
        (b'{"15-30": [0.5, 0.25]}', "not a headprobe score file"),
    ],
)
def test_hostile_files_are_refused(tmp_path, data, message):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=message) as caught:
        read_score_file(path)
    assert len(str(caught.value).splitlines()) == 1


def test_every_truncation_is_refused(tmp_path, sample):
    path = tmp_path / "cut.json"
    for length in range(len(sample) - 2):
        path.write_bytes(sample[:length])
        with pytest.raises(FileFormatError):
            read_score_file(path)


def test_over_long_files_are_refused_before_they_are_parsed(tmp_path, sample):
    path = tmp_path / "long.json"
    path.write_bytes(sample)
    with pytest.raises(FileFormatError, match="larger than the limit of 100 bytes"):
        read_score_file(path, max_bytes=100)
    assert read_score_file(path, max_bytes=len(sample)).num_trials == 1


def test_missing_file_and_folder_are_told(tmp_path):
    with pytest.raises(FileFormatError, match=r"gone.json: No such file"):
        load_scores(tmp_path / "gone.json")
    with pytest.raises(FileFormatError, match="Is a directory"):
        load_scores(tmp_path)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_is_a_file_format_error_of_one_line(tmp_path_factory, sample, data):
    position = data.draw(st.integers(0, len(sample) - 1))
    damaged = data.draw(
        st.sampled_from(
            [
                sample[:position],
                sample[:position] + bytes([data.draw(st.integers(0, 255))]) + sample[position + 1 :],
                sample[:position] + sample[position + data.draw(st.integers(1, 40)) :],
                sample[:position] + data.draw(st.binary(min_size=1, max_size=6)) + sample[position:],
            ]
        )
    )
    path = tmp_path_factory.mktemp("files") / "damaged.json"
    path.write_bytes(damaged)
    told = error_of(path)
    if told is None:  # only white space, the date or the environment can change without being noticed
        assert without_free_fields(score_file_bytes(load_scores(path))) == without_free_fields(sample)
    else:
        assert told.startswith(str(path))
        assert len(told.splitlines()) == 1


def error_of(path):
    try:
        read_score_file(path)
    except FileFormatError as error:
        return str(error)
    return None


def without_free_fields(data):
    return {k: v for k, v in json.loads(data).items() if k not in ("created_at", "environment")}

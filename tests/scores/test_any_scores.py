from __future__ import annotations

import io
import json
import os
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from headprobe.errors import FileFormatError, OptionError
from headprobe.scores.any_scores import UnreadableScoresError, read_any, reduce_to_kv
from headprobe.scores.head_scores import Method
from headprobe.scores.score_file import write_score_file


def tensor_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.tensor([[0.5, 1.0]]), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "kind", "heads", "mean"),
    [
        (b'{"0-0": [0.5, 0.5], "0-1": [1, 1]}', "headkv", "query", [[0.5, 1.0]]),
        (b' \n{"meta": {}, "scores": {"0-0": [0.5], "0-1": [1]}}', "locos", "query", [[0.5, 1.0]]),
        (b"0.5\t1.0\n", "duo", "kv", [[0.5, 1.0]]),
        (b'attn_head_set: "0-1,0-0"\n', "qrhead", "query", [[1.0, 2.0]]),
        (tensor_bytes(), "kvzip", "kv", [[0.5, 1.0]]),
    ],
)
def test_the_content_tells_the_format_whatever_the_name(
    tmp_path: Path, data: bytes, kind: str, heads: str, mean: list
) -> None:
    path = tmp_path / "scores.bin"
    path.write_bytes(data)
    scores = read_any(path)
    assert (scores.format, scores.heads, scores.mean.tolist()) == (kind, heads, mean)
    assert (scores.num_layers, scores.num_heads) == (1, 2)
    assert (scores.native, scores.geometry) == (None, None)
    assert scores.sha256 == sha256(data).hexdigest()
    assert not scores.mean.flags.writeable


def test_a_native_file_brings_its_geometry_method_and_bound(tmp_path: Path, toy_scores) -> None:
    scores = read_any(write_score_file(tmp_path / "a.json", toy_scores))
    assert (scores.format, scores.method, scores.model, scores.bound) == ("headprobe", "r2", "toy", 1.0)
    assert scores.native is not None
    assert scores.geometry == toy_scores.geometry
    assert scores.trial_scores is not None
    assert scores.trial_scores.shape == (3, 2, 4)  # the failing trial is left out
    assert scores.mean.tobytes() == toy_scores.mean.tobytes()


def test_a_native_file_without_trial_scores_has_none(tmp_path: Path, toy_scores) -> None:
    path = write_score_file(tmp_path / "a.json", toy_scores, with_trial_scores=False)
    assert read_any(path).trial_scores is None


def test_a_native_file_may_hold_a_ranking(tmp_path: Path, make_scores) -> None:
    method = Method("qrhead", "", 1, {"is_ranking": True})
    scores = read_any(write_score_file(tmp_path / "a.json", make_scores([[[2.0, 1.0]]], [True], method=method)))
    assert scores.is_ranking
    assert scores.notes[0].startswith("ranking-only: ")


def test_a_folder_stands_for_the_table_in_it(tmp_path: Path) -> None:
    (tmp_path / "full_attention_heads.tsv").write_text("1\t0\n")
    (tmp_path / "config.json").write_text('{"model_name": "models/Toy"}')
    scores = read_any(tmp_path)
    assert (scores.format, scores.model, scores.path) == ("duo", "Toy", tmp_path / "full_attention_heads.tsv")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello", "no known score file: headprobe"),
        (b"[1]", "no known score file: headprobe"),
        (b'{"0-0": [1]', "not JSON"),
        (b'{"0-0": [1], "0-0": [1]}', "the key '0-0' occurs twice"),
        (b'{"0-0": ' + b"[" * 5000, "nested deeper than 32 levels"),
        (b'{"a": 1}', "not a headprobe score file"),
        (b'{"schema": "headprobe/2"}', "a newer headprobe is needed"),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_path(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(FileFormatError, match=f"^{path}:.*{reason}"):
        read_any(path)


def test_a_fault_of_a_foreign_file_has_the_name_of_its_check(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps({"0-0": [1], "1-1": [1]}))
    with pytest.raises(UnreadableScoresError, match="2 of 2 x 2 heads are missing") as error:
        read_any(path)
    assert error.value.check == "missing-heads"


def test_larger_files_than_the_limit_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text('{"0-0": [1]}')
    with pytest.raises(FileFormatError, match="larger than the limit of 11 bytes"):
        read_any(path, max_bytes=11)
    assert read_any(path, max_bytes=12).mean.tolist() == [[1.0]]


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileFormatError, match="is not a regular file"):
        read_any(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["missing.json", "a\0b"])
def test_a_name_without_a_file_is_refused(name: str) -> None:
    with pytest.raises(FileFormatError, match="No such file|null"):
        read_any(name)


def test_query_heads_join_into_kv_heads_by_mean_or_max() -> None:
    mean = np.array([[0.0, 1.0, 0.5, 0.25], [0.0, 0.0, 1.0, 1.0]])
    assert reduce_to_kv(mean, 2).tolist() == [[0.5, 0.375], [0.0, 1.0]]
    assert reduce_to_kv(mean, 2, "max").tolist() == [[1.0, 0.5], [0.0, 1.0]]
    assert reduce_to_kv(mean, 4).tolist() == mean.tolist()


@pytest.mark.parametrize(("groups", "how", "told"), [(3, "mean", "4 query heads cannot"), (2, "sum", "not 'sum'")])
def test_other_groups_or_ways_to_join_are_refused(groups: int, how: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        reduce_to_kv(np.zeros((1, 4)), groups, how)


@pytest.mark.parametrize("around", ["{}", '{{"meta": {{}}, "scores": {}}}'])
def test_far_too_many_heads_are_refused_before_they_are_parsed(
    tmp_path: Path, around: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    path.write_text(around.format(json.dumps({f"{layer}-{head}": 0 for layer in range(600) for head in range(500)})))
    monkeypatch.setattr("headprobe.scores.strict_json.parse", None)
    with pytest.raises(
        UnreadableScoresError, match="300000 scores by layer-head key, need at most 65536 heads"
    ) as error:
        read_any(path)
    assert error.value.check == "wrong-shape"


def test_a_native_table_ends_at_as_many_heads(tmp_path: Path, toy_scores) -> None:
    path = write_score_file(tmp_path / "a.json", toy_scores, with_trial_scores=False)
    record = json.loads(path.read_text())
    record["model"] |= {"num_hidden_layers": 257, "num_attention_heads": 256, "layer_types": ["full_attention"] * 257}
    record["scores"] |= {name: [[0.0] * 256] * 257 for name in ("mean", "std", "normalized")}
    path.write_text(json.dumps(record))
    with pytest.raises(FileFormatError, match="the scores have 65792 heads, need at most 65536"):
        read_any(path)


@pytest.mark.parametrize(
    "text",
    [
        '{"0-0": [1], "0-0": [2]}',
        '{"meta": {"model": "a", "model": "b"}, "scores": {"0-0": [1]}}',
        '{"schema": "headprobe/1", "schema": "headprobe/1"}',
    ],
)
def test_a_key_that_comes_twice_in_json_is_refused_whatever_the_format(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(FileFormatError, match="occurs twice in one object"):
        read_any(tmp_path / "a.json")

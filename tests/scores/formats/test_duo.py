from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from headprobe.scores.formats.duo import duo_bytes, is_duo, read_duo
from headprobe.scores.formats.format import FaultError

NOWHERE = Path("nowhere/full_attention_heads.tsv")


def test_rows_are_layers_and_columns_are_kv_heads() -> None:
    table = read_duo(b"5.0e-01\t0\n1\t2.5e-01\n", NOWHERE)
    assert table.heads == "kv"
    assert table.mean.tolist() == [[0.5, 0.0], [1.0, 0.25]]
    assert (table.method, table.model, table.bound) == ("duo", None, 1.0)


def test_the_model_is_named_by_the_config_beside_the_table(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_name": "models/Toy-1B", "sink_size": 4}')
    assert read_duo(b"1\t0\n", tmp_path / "full_attention_heads.tsv").model == "Toy-1B"


@pytest.mark.parametrize(
    ("text", "told"), [('{"a": 1, "a": 2}', "the key 'a' occurs twice"), ("[]", "holds no object")]
)
def test_a_broken_config_is_noted_and_the_table_still_read(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "config.json").write_text(text)
    table = read_duo(b"1\t0\n", tmp_path / "full_attention_heads.tsv")
    assert table.mean.tolist() == [[1.0, 0.0]]
    assert table.notes[0].startswith("bad-config: ")
    assert told in table.notes[0]


@pytest.mark.parametrize(
    ("data", "check", "reason"),
    [
        (b"1\t2\n3\n", "missing-heads", "layer 1 has 1 KV heads, layer 0 has 2"),
        (b"1\t2\n3\tx\n", "not-a-number", "line 2, column 2 is 'x', need a number"),
        (b"1\t\xff\n", "not-a-number", "line 1, column 2 is '.ufffd', need a number"),
        (b"1\tnan\n", "not-finite", "line 1, column 2 is nan"),
        (b"1\t1e400\n", "not-finite", "line 1, column 2 is inf"),
        (b"1\t-Infinity\n", "not-finite", "line 1, column 2 is -inf"),
        (b"1_0\t1\n0\t1\n", "not-a-number", "line 1, column 1 is '1_0', need a number"),
        (b"1\t0_1.5e0_1\n", "not-a-number", "line 1, column 2 is '0_1.5e0_1'"),
        ("1\t\uff11\n".encode(), "not-a-number", "line 1, column 2"),
        (b"1\t 1\n", "not-a-number", "line 1, column 2 is ' 1'"),
        (b"1\t1 \n", "not-a-number", "line 1, column 2 is '1 '"),
        (b"1\t inf\n", "not-a-number", "line 1, column 2 is ' inf'"),
        (b"1\t+1\n", "not-a-number", "line 1, column 2 is '[+]1'"),
        (b"1\t0x10\n", "not-a-number", "line 1, column 2 is '0x10'"),
        (b"1\t1d5\n", "not-a-number", "line 1, column 2 is '1d5'"),
        (b"1\t1,5\n", "not-a-number", "line 1, column 2 is '1,5'"),
        (b"1\t\n", "not-a-number", "line 1, column 2 is ''"),
        (b"0\t0\n" * 32769, "wrong-shape", "65538 heads, need at most 65536"),
        (b"1\t1e7\n", "out-of-range", "need at most 1e[+]06"),
        (b"0\n" * 131073, "wrong-shape", "more than 65536 heads"),
        (b"\n", "wrong-shape", "the scores have the shape"),
    ],
)
def test_a_broken_table_is_refused_by_name(data: bytes, check: str, reason: str) -> None:
    with pytest.raises(FaultError, match=reason) as error:
        read_duo(data, NOWHERE)
    assert error.value.check == check


@given(arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=5), elements=st.floats(-1e6, 1e6)))
def test_what_is_written_is_read_again_to_the_last_bit(table: np.ndarray) -> None:
    data = duo_bytes(table)
    assert is_duo(data)
    assert read_duo(data, NOWHERE).mean.tobytes() == table.tobytes()

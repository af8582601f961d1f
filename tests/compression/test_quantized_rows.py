"""Numbers that are held as int8 or int4: exact, small, each row by itself."""

from __future__ import annotations

import pytest
import torch

from headprobe.compression.kv_cache_dtypes import FORMATS, check_kv_cache_dtype, parse_kv_cache_dtypes
from headprobe.compression.quantized_rows import QuantizedRows
from headprobe.errors import OptionError
from tests.compression.plain_quantization import plain_nbytes, plainly_held

DTYPES = tuple(FORMATS)


def rows_of(numbers: torch.Tensor, kv_cache_dtype: str) -> QuantizedRows:
    held = QuantizedRows.zeros(len(numbers), numbers, FORMATS[kv_cache_dtype])
    held.write(torch.arange(len(numbers)), numbers)
    return held


def random(count: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator) * torch.randn(count, 1, generator=generator).exp()


def test_int8_by_hand() -> None:
    given = torch.tensor([[12.7, -6.4, 0.06, 0.0]])
    held = rows_of(given, "int8")
    assert held.scales.tolist() == [[0.10009765625]]  # 0.1 in bfloat16
    assert held.codes.tolist() == [[127, -64, 1, 0]]
    assert held.read(slice(None)).tolist() == [[127 * 0.10009765625, -64 * 0.10009765625, 0.10009765625, 0.0]]


def test_int4_by_hand() -> None:
    held = rows_of(torch.tensor([[-1.0, 14.0, 3.4, 2.6, 3.6]]), "int4")
    assert held.scales.tolist() == [[1.0, -1.0]]
    assert held.codes.tolist() == [[0 | 15 << 4, 4 | 4 << 4, 5]]
    assert held.read(slice(None)).tolist() == [[-1.0, 14.0, 3.0, 3.0, 4.0]]


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("width", [1, 7, 8, 32, 33, 48, 64, 80, 128])
def test_rows_read_as_the_definition_says_and_take_as_many_bytes(kv_cache_dtype: str, width: int) -> None:
    given = random(9, width)
    held = rows_of(given, kv_cache_dtype)
    assert torch.equal(held.read(slice(None)), plainly_held(given, kv_cache_dtype))
    nbytes = plain_nbytes(width, kv_cache_dtype)
    assert sum(table.nbytes for table in held.tables) == 9 * nbytes == 9 * FORMATS[kv_cache_dtype].row_nbytes(width)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_no_number_is_further_off_than_half_a_step_and_what_rounding_the_scale_costs(kv_cache_dtype: str) -> None:
    given = random(200, 32)
    off = (rows_of(given, kv_cache_dtype).read(slice(None)) - given).abs().amax(-1)
    largest = given.abs().amax(-1)
    step = largest / 127 if kv_cache_dtype == "int8" else (given.amax(-1) - given.amin(-1)) / 15
    assert (off <= 0.51 * step + largest / 256).all()


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_a_row_is_the_same_whatever_stands_beside_it(kv_cache_dtype: str) -> None:
    given = random(5, 64)
    held = rows_of(given, kv_cache_dtype)
    before = held.read(slice(1, 5)).clone()
    held.write(torch.tensor([0]), 1e3 * random(1, 64, seed=3))
    assert torch.equal(held.read(slice(1, 5)), before)
    assert torch.equal(held.read(torch.tensor([4, 1])), before[[3, 0]])


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("number", [0.0, 3.0, -2.5])
def test_a_row_of_one_number_reads_as_that_number(kv_cache_dtype: str, number: float) -> None:
    held = rows_of(torch.full((1, 40), number), kv_cache_dtype)
    torch.testing.assert_close(held.read(slice(None)), torch.full((1, 40), number), rtol=2**-8, atol=0.0)


@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_broken_numbers_do_not_disappear(kv_cache_dtype: str, number: float) -> None:
    given = random(3, 64)
    given[1, 40] = number
    read = rows_of(given, kv_cache_dtype).read(slice(None))
    assert not read[1, 32:].isfinite().any()
    assert read[[0, 2]].isfinite().all()
    assert read[1, :32].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kv_cache_dtype", DTYPES)
def test_numbers_come_back_in_the_type_that_they_came_in(kv_cache_dtype: str, dtype: torch.dtype) -> None:
    given = random(4, 48).to(dtype)
    read = rows_of(given, kv_cache_dtype).read(slice(None))
    assert read.dtype == dtype
    assert torch.equal(read, plainly_held(given, kv_cache_dtype))


def test_unknown_number_formats_are_refused() -> None:
    with pytest.raises(OptionError, match="kv_cache_dtype is 'fp8', need one of auto, int8, int4"):
        check_kv_cache_dtype("fp8")
    with pytest.raises(OptionError, match="kv_cache_dtype is '', need"):
        parse_kv_cache_dtypes("int8,")
    assert parse_kv_cache_dtypes("int8,auto,int8") == ("int8", "auto")

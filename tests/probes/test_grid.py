from __future__ import annotations

import pytest

from headprobe.errors import OptionError, PlanError
from headprobe.probes.plan import clean_depth, even_depths, even_lengths, parse_depths, parse_lengths


def test_even_lengths_end_with_the_longest() -> None:
    assert even_lengths(2048, 5) == (409, 819, 1228, 1638, 2048)
    assert even_lengths(3, 3) == (1, 2, 3)


@pytest.mark.parametrize(("longest", "count"), [(0, 1), (5, 0), (-1, 1), (2, 3)])
def test_even_lengths_refuse_what_cannot_be(longest: int, count: int) -> None:
    with pytest.raises(OptionError, match=f"{count} lengths up to {longest} tokens"):
        even_lengths(longest, count)


def test_even_depths_reach_from_0_to_100() -> None:
    assert even_depths(3) == (0.0, 50.0, 100.0)
    assert even_depths(10)[1] == 11.1111
    assert even_depths(1) == (50.0,)


def test_no_depths_are_refused() -> None:
    with pytest.raises(OptionError, match="at least 1, got 0"):
        even_depths(0)


def test_lengths_are_parsed_with_k_as_1024() -> None:
    assert parse_lengths(" 512, 1k,2K ,1m,0.5k,512") == (512, 1024, 2048, 1_048_576, 512, 512)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "length '' is not a number"),
        ("1,,2", "length '' is not a number"),
        ("12x", "'12x' is not a number"),
        ("1.3", "'1.3' is not a number of tokens"),
        ("nan", "'nan' is not a number"),
        ("1e3", "'1e3' is not a number"),
        ("1_0k", "'1_0k' is not a number"),
        ("\uff11k", "is not a number"),
        ("0x10", "'0x10' is not a number"),
        ("9" * 40, "is not a number"),
        ("0", "length 0 must be at least 1"),
        ("512,-4", "length -4 must be at least 1"),
        ("0k", "length 0 must be at least 1"),
    ],
)
def test_what_is_no_length_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_lengths(text)


def test_a_length_beyond_the_window_quotes_both() -> None:
    assert parse_lengths("2k", window=2048) == (2048,)
    with pytest.raises(PlanError, match="length 4096 is beyond the model's window of 2048 tokens"):
        parse_lengths("512,4k", window=2048)


def test_depths_are_a_number_of_depths_or_percents() -> None:
    assert parse_depths("2") == (0.0, 100.0)
    assert parse_depths("0,33.33333,100%") == (0.0, 33.3333, 100.0)
    assert parse_depths("50.0") == (50.0,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "depths '' are neither"),
        ("a,b", "are neither"),
        ("0", "at least 1, got 0"),
        ("0,101", "depth 101 must lie between 0 and 100"),
        ("-1,5", "depth -1 must lie"),
        ("nan,1", "depth nan must lie"),
        ("inf,1", "depth inf must lie"),
        ("1_0,20", "depths '1_0,20' are neither"),
        ("\uff11,20", "are neither"),
        ("1e1,20", "are neither"),
        ("0x1,20", "are neither"),
    ],
)
def test_what_are_no_depths_is_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        parse_depths(text)


def test_a_negative_zero_is_zero() -> None:
    assert str(clean_depth(-0.0)) == "0.0"


@pytest.mark.parametrize("count", [1001, 1_000_000, 99999999999999999999])
def test_numbers_without_end_are_refused_before_they_are_spread(count: int) -> None:
    with pytest.raises(OptionError, match=f"{count:,} depths are too many, need at most 1,000"):
        even_depths(count)
    with pytest.raises(OptionError, match=f"{count:,} lengths are too many, need at most 1,000"):
        even_lengths(count, count)
    assert len(even_depths(1000)) == len(set(even_depths(1000))) == 1000

"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.types import format_at_least, format_bytes, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("8GiB", 8 * 2**30), ("512MB", 512 * 10**6), ("1.5kb", 1500), ("42", 42)],
)
def test_sizes_read_decimal_and_binary_units(text: str, expected: int) -> None:
    assert parse_size_bytes(text) == expected


@pytest.mark.parametrize("text", ["8GBB", "-8GB", "eight", "", "0", "8 G B", "nan", "1e9"])
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size_bytes(text)


def test_bytes_are_shown_in_decimal_units() -> None:
    assert format_bytes(1_500_000_000) == "1.5 GB"
    assert format_bytes(999) == "999 B"


@given(st.integers(1, 10**12))
def test_a_budget_rounded_up_is_enough_when_it_is_typed_back(size: int) -> None:
    assert size <= parse_size_bytes(format_at_least(size)) <= size * 1.01 + 1

"""Sizes as people write them."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engine.types import format_at_least, format_bytes, parse_size_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8GB", 8 * 10**9), ("8GiB", 8 * 2**30), ("512MB", 512 * 10**6), ("1.5kb", 1500), ("42", 42)],
)
def test_sizes_read_decimal_and_binary_units(text: str, expected: int) -> None:
    assert parse_size_bytes(text) == expected


@pytest.mark.parametrize("text", ["8G", "8gb", "8 GB", "8Go", "8 gigabytes", "8_000MB", " 8.0GB "])
def test_sizes_are_read_in_the_spellings_people_use(text: str) -> None:
    assert parse_size_bytes(text) == 8 * 10**9


@pytest.mark.parametrize("text", ["8Gi", "8gib", "8 gibibytes", "8192MiB"])
def test_binary_sizes_too(text: str) -> None:
    assert parse_size_bytes(text) == 8 * 2**30


def test_a_decimal_comma_is_told_to_be_a_point() -> None:
    with pytest.raises(ValueError, match=r"a decimal takes a point: 8\.5GB"):
        parse_size_bytes("8,5GB")


@pytest.mark.parametrize(
    "text",
    ["8i", "8ib", "80%", "8 parsecs", "8GBB", "-8GB", "eight", "", "0", "8 G B", "nan", "1e9"],
)
def test_what_is_no_size_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size_bytes(text)


@pytest.mark.parametrize("text", ["9" * 60 + "GB", "5000000TB"])
def test_what_no_machine_has_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is more than any machine has"):
        parse_size_bytes(text)


@pytest.mark.parametrize("text", ["9" * 400 + "GB", "8" + " " * 200_000 + "!"])
def test_a_long_text_is_no_size_and_takes_no_time(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"^'.{1,64}' is not a size"
    ):  # by its square it took minutes
        parse_size_bytes(text)


def test_bytes_are_shown_in_decimal_units() -> None:
    assert format_bytes(1_500_000_000) == "1.5 GB"
    assert format_bytes(999) == "999 B"


@given(st.integers(1, 10**12))
@example(8190)  # 8.19 kB: as a float, 8.19 * 1000 is less
def test_a_budget_rounded_up_is_enough_when_it_is_typed_back(size: int) -> None:
    assert size <= parse_size_bytes(format_at_least(size)) <= size * 1.01 + 1

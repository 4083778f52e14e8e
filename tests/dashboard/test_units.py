"""Figures as text: three digits, SI units, no exponents."""

import pytest

from dashboard.units import digits, figure, interval
from engine.contract.report import Metric


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "ms", "0 ms"),
        (0.00123, "ms", "1.23 µs"),
        (1.04377, "ms", "1.04 ms"),
        (66_032.4969, "ms", "66 s"),
        (666_032.4969, "ms", "11.1 min"),
        (12_189_696, "bytes", "12.2 MB"),
        (201_672_025.03, "bytes/s", "202 MB/s"),
        (414.268, "tokens/s", "414 tokens/s"),
        (666_032.4969, "tokens/s", "666,032 tokens/s"),
        (0.99920046, "fraction", "0.9992"),
        (1.0, "ratio", "1"),
    ],
)
def test_a_figure_has_three_digits_and_its_unit(value: float, unit: str, text: str):
    assert figure(value, unit) == text


@pytest.mark.parametrize("value", [1e-4, 0.05, 0.999, 9.99, 99.96, 999.5, 1e6, 1e9])
def test_digits_are_near_the_value_and_have_no_exponent(value: float):
    text = digits(value)
    assert "e" not in text
    assert float(text.replace(",", "")) == pytest.approx(value, rel=0.006)


def test_an_interval_names_its_unit_once():
    assert interval(Metric(414.2, 367.1, 467.4, 3, "tokens/s")) == "367 to 467 tokens/s"
    assert interval(Metric(414.2, 367.1, 467.4, 3, "tokens/s"), with_unit=False) == "367 to 467"
    assert interval(Metric(900.0, 800.0, 1200.0, 3, "ms")) == "800 ms to 1.2 s"
    assert interval(Metric(414.2, 367.1, 467.4, 2, "tokens/s")) == ""

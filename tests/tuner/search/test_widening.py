"""Intervals learn from how earlier ones held."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tuner.search.searcher import LEAST_WIDENING, widening


def trial(number: int, value: float, half: float, **other: Any) -> Any:
    predicted = {"output_tps_low": math.exp(-half), "output_tps_high": math.exp(half)}
    figures = {"output_tps": SimpleNamespace(value=math.exp(value))}
    return SimpleNamespace(**{"number": number, "figures": figures, "predicted": predicted} | other)


def test_without_earlier_intervals_nothing_is_widened():
    assert widening([]) == 1.0
    assert widening([trial(0, 9.0, 1.0, predicted={}), trial(1, 9.0, 1.0, figures={})]) == 1.0


def test_a_miss_widens_and_hits_narrow_to_a_bound():
    missed = widening([trial(0, 2.0, 1.0)])
    assert missed == pytest.approx(math.exp(0.45))
    assert widening([trial(1, 0.0, 1.0), trial(0, 2.0, 1.0)]) < missed
    assert widening([trial(number, 0.0, 1.0) for number in range(100)]) == LEAST_WIDENING


@pytest.mark.parametrize("scale", [0.6, 1.0, 3.0])
def test_nine_of_ten_hold_in_the_long_run_whatever_the_scale_of_errors(scale: float):
    rng = np.random.default_rng(0)
    trials: list[Any] = []
    held = 0
    for number in range(300):
        half = 1.645 * widening(trials[-60:])  # what is far back no longer matters
        value = scale * float(rng.normal())
        held += abs(value) <= half
        trials.append(trial(number, value, half))
    assert held / len(trials) == pytest.approx(0.9, abs=0.05)

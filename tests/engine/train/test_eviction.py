"""Fitted weights are a simplex and no worse than equal ones."""

from __future__ import annotations

import numpy as np
import pytest

from engine.trace.trace import Trace
from engine.train.eviction import fit, hit_rate
from tests.engine.policy.made import make_trace


def made(passes: int = 120) -> Trace:
    """Experts 0 and 1 return every fourth pass; between them others pass by."""
    random = np.random.default_rng(1)
    rows = [random.permutation(np.arange(2, 12))[:2] for _ in range(passes)]
    rows[::4] = [np.array([0, 1])] * len(rows[::4])
    return make_trace([[row, row] for row in rows], among=12)


def test_fitted_weights_beat_recency_where_frequency_matters() -> None:
    trace = made()
    weights, rate = fit(trace, slots=12, scope="layer", trials=12, seed=0)
    assert sum(weights) == pytest.approx(1.0)
    assert min(weights) >= 0
    equal = hit_rate(trace, 12, {"cache.eviction": "hobbit"})
    assert rate >= equal
    assert rate > hit_rate(trace, 12, {"cache.eviction": "hobbit",
                                      "cache.options.weights": [1, 0, 0, 0]})  # fmt: skip
    assert rate <= hit_rate(trace, 12, {"cache.eviction": "belady"})

"""Drift: told from routing and hit rate, said only where enough was served."""

from typing import Any

import pytest

from engine.trace.fingerprint import RoutingCounts, distance
from tuner.deployment.drift import (
    HIT_RATE_LIMIT,
    LEAST_TOKENS,
    ROUTING_LIMIT,
    Reference,
    find_drift,
)

EVEN = [[0.25] * 4] * 2


def window(tokens: int = LEAST_TOKENS, hit_rate: float | None = 0.8, first: float = 0.25) -> Any:
    rest = (1 - first) / 3
    return {
        "prompt_tokens": tokens // 2,
        "output_tokens": tokens - tokens // 2,
        "expert_hit_rate": hit_rate,
        "routing": [[first, rest, rest, rest]] * 2,
    }


def test_what_it_was_tuned_for_is_no_drift():
    found = find_drift(window(), Reference(EVEN, 0.8))
    assert (found.routing, found.hit_rate, found.retune) == (0, 0, False)
    assert not find_drift(window(hit_rate=0.9), Reference(EVEN, 0.8)).retune


def test_another_text_or_a_lower_hit_rate_asks_for_another_config():
    far = find_drift(window(first=0.25 + ROUTING_LIMIT + 0.01), Reference(EVEN, 0.8))
    assert far.routing == pytest.approx(ROUTING_LIMIT + 0.01)
    assert far.retune
    low = find_drift(window(hit_rate=0.8 - HIT_RATE_LIMIT - 0.01), Reference(EVEN, 0.8))
    assert low.retune
    assert low.to_json()["hit_rate"] == pytest.approx(HIT_RATE_LIMIT + 0.01)


def test_nothing_is_said_of_few_tokens_or_without_a_reference():
    few = find_drift(window(tokens=LEAST_TOKENS - 1, first=1.0), Reference(EVEN, 0.8))
    assert (few.routing, few.hit_rate, few.retune) == (None, None, False)
    unknown = find_drift(window(first=1.0, hit_rate=None), Reference(None, 0.8))
    assert (unknown.routing, unknown.hit_rate) == (None, None)


def test_a_fingerprint_is_the_share_of_each_bin():
    counts = RoutingCounts(layers=2, experts=32)
    for layer in (0, 1):
        counts.add(layer, [0, 16, 1, 2])  # 0 and 16 share a bin
    found = counts.take()
    assert found is not None
    assert [row[:4] for row in found] == [[0.5, 0.25, 0.25, 0.0]] * 2
    assert counts.take() is None
    assert distance(found, found) == 0
    assert distance(found, EVEN) is None

"""Weighted recency, frequency, high-precision use and layer distance."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from engine.config.settings import Options
from engine.errors import ConfigError
from engine.policy.context import PolicyContext
from engine.types import ExpertId


class Weights(NamedTuple):
    """The weight of each term; they sum to 1."""

    recency: float = 0.25
    frequency: float = 0.25
    high_use: float = 0.25
    layer_distance: float = 0.25


def read_weights(options: Options) -> Weights:
    """Read `cache.options.weights`, four numbers that sum to 1. Raises ConfigError."""
    given = options.get("weights", Weights())
    if isinstance(given, str):
        given = given.split(",")
    try:
        weights = Weights(*(float(value) for value in given))
    except (TypeError, ValueError):
        raise ConfigError(_explain(given)) from None
    if min(weights) < 0 or abs(sum(weights) - 1.0) > 1e-3:
        raise ConfigError(_explain(given))
    return weights


def _explain(given: object) -> str:
    return (
        f"cache.options.weights = {given!r}: write four numbers from 0 on that sum to 1 (recency, "
        "frequency, high-precision use, layer distance), or fit them to a trace with "
        "tune train eviction"
    )


class WeightedEviction:
    """Evicts by HOBBIT's priority (arXiv 2411.01433).

    It evicts the smallest w1 R/T + w2 F/T + w3 H/T + w4 (1 - ((l_t - l_i + L) % L)/L). T: passes of
    the present sequences; R: pass of the last use; F: uses; H: uses at the high precision; l_t: the
    expert's layer, l_i the present one, so that the layer that comes next is kept and the one that
    has just passed is evicted first. Records are reset with each sequence.
    """

    keeps = True
    expects = False

    def __init__(self, weights: Weights, layers: int) -> None:
        self._weights = weights
        self._layers = layers
        self._counted: dict[ExpertId, float] = {}  # w2 F + w3 H
        self._scores: dict[ExpertId, float] = {}  # w1 R + w2 F + w3 H
        self._seen_layers: set[int] = set()
        self.begin_sequences()

    def begin_sequences(self) -> None:
        """Reset all records."""
        self._counted.clear()
        self._scores.clear()
        self._passes = 0
        self._layer = self._layers - 1

    def begin_layer(self, layer: int) -> None:
        """Count a new pass if this layer does not follow the previous one."""
        if layer <= self._layer:
            self._passes += 1
        self._layer = layer
        self._seen_layers.add(layer)

    def use(self, expert: ExpertId, *, high: bool = True) -> None:
        """Add one use in the present pass."""
        weights = self._weights
        counted = self._counted.get(expert, 0.0) + weights.frequency
        if high:
            counted += weights.high_use
        self._counted[expert] = counted
        self._scores[expert] = counted + weights.recency * self._passes

    def insert(self, expert: ExpertId, *, high: bool = True) -> None:
        """Count the insertion as a use."""
        self.use(expert, high=high)

    def expect(self, expert: ExpertId, score: float) -> None:
        """Never called."""

    def forget(self, expert: ExpertId) -> None:
        """Does nothing: the record is kept until the sequence ends."""

    def victim(self, candidates: Collection[ExpertId], incoming: ExpertId) -> ExpertId:
        """The candidate with the smallest weighted sum; ties go to the first."""
        scores = self._scores
        if len(self._seen_layers) <= 1:  # all at the same distance
            return min(candidates, key=lambda expert: scores.get(expert, 0.0))
        layers, present = self._layers, self._layer
        scale = self._weights.layer_distance * max(1, self._passes)  # all terms times T
        near = [scale * (1 - ((layer - present) % layers) / layers) for layer in range(layers)]
        return min(candidates, key=lambda expert: scores.get(expert, 0.0) + near[expert.layer])


def build(context: PolicyContext) -> WeightedEviction:
    """The factory of engine.config.choices."""
    return WeightedEviction(read_weights(context.config.cache.options), context.layers)

"""Predicts exactly, from a recorded trace of the very run: the upper bound of every predictor."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from engine.policy.context import PolicyContext
from engine.policy.events import PassStart
from engine.policy.future import Future
from engine.policy.predict.base import Prediction
from engine.policy.predict.none import NoPredictor


class OraclePredictor(NoPredictor):
    """Predicts the demands of the next `depth` layer passes, across pass boundaries; nothing if
    no future is known."""

    def __init__(self, future: Future, depth: int) -> None:
        self._future = future
        self._depth = min(depth, future.layers - 1) if future.layers > 1 else 0
        self._first = min(depth, future.layers)

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Predict the first layers of this pass."""
        return self._predict(self._first)

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """Predict the following layer passes."""
        return self._predict(self._depth)

    def _predict(self, steps: int) -> Iterator[Prediction]:
        for layer, experts in self._future.upcoming(steps):
            yield Prediction(layer, experts, (1.0,) * len(experts))


def build(context: PolicyContext) -> OraclePredictor:
    """The factory of engine.config.choices."""
    return OraclePredictor(context.future, context.config.prefetch.depth)

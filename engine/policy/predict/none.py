"""No prediction: the baseline that every other predictor must beat."""

from __future__ import annotations

from collections.abc import Iterable

from engine.policy.context import PolicyContext
from engine.policy.events import GateView, Need, PassStart, Routing
from engine.policy.predict.base import Prediction


class NoPredictor:
    """Predicts nothing."""

    needs: frozenset[Need] = frozenset()

    def begin_sequences(self) -> None:
        """Does nothing: there is no state."""

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """Always empty."""
        return ()

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> Iterable[Prediction]:
        """Always empty."""
        return ()

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """Does nothing: there is nothing to learn."""

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """Always empty."""
        return ()

    def end_pass(self) -> None:
        """Does nothing: there is no state."""


def build(context: PolicyContext) -> NoPredictor:
    """The factory of engine.config.choices."""
    return NoPredictor()

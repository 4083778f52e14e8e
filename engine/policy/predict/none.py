"""No prediction: the baseline that every other predictor must beat."""

from __future__ import annotations

from collections.abc import Sequence

from engine.policy.predict.base import Prediction, Scorer


class NoPredictor:
    """Predicts nothing."""

    needs_gate_input = False

    def predict(self, layer: int, scorer: Scorer) -> list[Prediction]:
        """Always empty."""
        return []

    def observe(self, layer: int, experts: Sequence[Sequence[int]]) -> None:
        """Nothing to learn."""

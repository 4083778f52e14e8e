"""The prediction contract.

A Predictor is asked when the gate input of a layer is known, before that layer's routing is. What
it needs of the model it gets through a Scorer; it returns hints, which never change an output.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Prediction:
    """Experts that `layer` will probably want, the most probable first."""

    layer: int
    experts: tuple[int, ...]


class Scorer(Protocol):
    """What the engine can compute for a predictor at a gate event."""

    def top_experts(self, layer: int, count: int) -> Sequence[Sequence[int]]:
        """The `count` best experts of a later layer's router on the present gate input, for each
        token, best first."""


class Predictor(Protocol):
    """Predicts the experts of layers after `layer`."""

    needs_gate_input: bool

    def predict(self, layer: int, scorer: Scorer) -> list[Prediction]:
        """Hints for later layers, nearest first."""

    def observe(self, layer: int, experts: Sequence[Sequence[int]]) -> None:
        """The routing of one micro-batch became known: chosen experts for each token."""

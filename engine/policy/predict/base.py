"""The prediction contract.

A Predictor receives every event of engine.policy.events and answers some of them with predictions,
which never change an output. It declares the model values that it needs beyond the chosen experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from engine.policy.events import GateView, Need, PassStart, Routing


@dataclass(frozen=True)
class Prediction:
    """Experts that `layer` will probably select, the most probable first.

    scores: of each expert, comparable within one prediction (a probability, or a fraction of
    tokens); () if the predictor only ranks. A layer before the present one means the next pass.
    """

    layer: int
    experts: tuple[int, ...]
    scores: tuple[float, ...] = ()


class Predictor(Protocol):
    """Predicts experts of other layers.

    Predictions of one event are ordered nearest layer first; they may be made lazily, and the
    caller may stop the iteration. A prediction never concerns the layer that is being routed.
    """

    needs: frozenset[Need]

    def begin_sequences(self) -> None:
        """New sequences begin: per-sequence state is reset."""

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """A forward pass begins."""

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> Iterable[Prediction]:
        """The router of `layer` is about to run. Called only if `needs` contains top_experts or
        gate_input."""

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """The routing of one micro-batch is known."""

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """All micro-batches are routed; the layer's experts are about to be computed."""

    def end_pass(self) -> None:
        """The forward pass is done."""

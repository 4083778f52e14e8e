"""The prediction contract.

A Predictor is told every event of engine.policy.events and answers some of them with hints, which
never change an output. What it needs of the model beyond the chosen experts it declares.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from engine.policy.events import GateView, Need, PassStart, Routing


@dataclass(frozen=True)
class Prediction:
    """Experts that `layer` will probably want, the most probable first.

    scores: of each expert, comparable within one prediction (a probability, or a fraction of
    tokens); () where the predictor ranks only. layer may lie behind the present one: then it is
    meant for the next pass.
    """

    layer: int
    experts: tuple[int, ...]
    scores: tuple[float, ...] = ()


class Predictor(Protocol):
    """Predicts experts of other layers.

    Predictions of one event come nearest layer first; they may be made lazily, and the caller may
    stop asking. A prediction never concerns the layer that is being routed.
    """

    needs: frozenset[Need]

    def begin_sequences(self) -> None:
        """New sequences begin: what is kept for each sequence starts anew."""

    def begin_pass(self, start: PassStart) -> Iterable[Prediction]:
        """A forward pass begins."""

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> Iterable[Prediction]:
        """The router of `layer` is about to run. Told only where `needs` names top_experts or
        gate_input."""

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """The routing of one micro-batch became known."""

    def layer_routed(self, layer: int) -> Iterable[Prediction]:
        """All micro-batches are routed; the layer's experts are about to be computed."""

    def end_pass(self) -> None:
        """The forward pass is done."""

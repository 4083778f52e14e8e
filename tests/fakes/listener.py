"""Hears every event of a run, as values that can be compared."""

from __future__ import annotations

from typing import Any

from engine.policy.events import Need, PassStart, Routing


class Listener:
    """Records every event as values."""

    def __init__(self, needs: frozenset[Need] = frozenset()) -> None:
        self.needs = needs
        self.events: list[Any] = []

    def begin_sequences(self) -> None:
        self.events.append("sequences")

    def begin_pass(self, start: PassStart) -> None:
        self.events.append((start.phase, start.tokens))

    def gate_entered(self, layer: int, micro_batch: int, view: Any) -> None:
        self.events.append((layer, micro_batch, view.gate_input().tolist()))

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        values = [
            None if v is None else v.tolist() for v in (routing.weights, routing.probabilities)
        ]
        self.events.append((layer, micro_batch, routing.experts, *values))

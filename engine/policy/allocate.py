"""How many slots each layer gets."""

from __future__ import annotations

from typing import Protocol

from engine.memory import slots_by_layer


class Allocation(Protocol):
    """Splits a number of slots over the layers."""

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """Slots of each layer; they sum to `slots` (at most layers * experts), each layer has at
        least one and at most `experts`."""


class UniformAllocation:
    """As even as whole slots allow."""

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """The remainder goes to the first layers."""
        return slots_by_layer(slots, layers)

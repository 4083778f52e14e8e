"""How many bits an expert gets, by why it is loaded."""

from __future__ import annotations

from typing import Literal, Protocol

from engine.types import Bits, ExpertId

Purpose = Literal["resident", "prefetch", "miss"]


class PrecisionPolicy(Protocol):
    """Chooses a record's precision; None means: skip this expert (a lossy decision)."""

    def bits(self, expert: ExpertId, purpose: Purpose) -> Bits | None:
        """Bits of this expert for this purpose."""


class UniformPrecision:
    """The same bits for every expert and purpose."""

    def __init__(self, bits: Bits) -> None:
        self._bits = bits

    def bits(self, expert: ExpertId, purpose: Purpose) -> Bits:
        """Always the configured bits."""
        return self._bits

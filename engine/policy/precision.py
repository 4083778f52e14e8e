"""Chooses the bits of an expert by the reason for its load.

The decision is made when an expert is loaded, with at most two precisions: high (precision.bits)
and low (precision.low_bits); a plan made before the run may use any. A resident record of higher
precision than wanted is used; one of lower precision is not, and the expert is loaded again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.policy.events import Need, Routing
from engine.precision.table import Table
from engine.types import Bits, Phase

DemandedBits = Mapping[int, Bits | None]
"""Bits by expert of one layer; None: skip the expert if it is missing. Absent: high."""


class PrecisionPolicy(Protocol):
    """Chooses the precision of loaded experts."""

    high: Bits
    needs: frozenset[Need]

    def demanded(self, layer: int, phase: Phase, routing: Routing) -> DemandedBits:
        """The lowest acceptable precisions of the demanded experts of one micro-batch."""

    def predicted(
        self, layer: int, phase: Phase, experts: Sequence[int], scores: Sequence[float]
    ) -> DemandedBits:
        """The precisions of predicted experts (best first); scores: fractions of tokens, or ()."""


class UniformPrecision:
    """The same bits for every expert and purpose."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, high: Bits) -> None:
        self.high = high

    def demanded(self, layer: int, phase: Phase, routing: Routing) -> DemandedBits:
        """Always high."""
        return {}

    def predicted(
        self, layer: int, phase: Phase, experts: Sequence[int], scores: Sequence[float]
    ) -> DemandedBits:
        """Always high."""
        return {}


class PlannedPrecision:
    """Fixes the bits of each expert before the run. table: [L][E], none above `high`."""

    needs: frozenset[Need] = frozenset()

    def __init__(self, table: Table, high: Bits) -> None:
        self.high = high
        self._coarser: list[dict[int, Bits]] = [
            {expert: bits for expert, bits in enumerate(row) if bits != high} for row in table
        ]

    def demanded(self, layer: int, phase: Phase, routing: Routing) -> DemandedBits:
        """The planned bits."""
        return self._coarser[layer]

    def predicted(
        self, layer: int, phase: Phase, experts: Sequence[int], scores: Sequence[float]
    ) -> DemandedBits:
        """The planned bits."""
        return self._coarser[layer]


class PopularityMass:
    """Low precision for unpopular experts (Fate, arXiv 2502.12224).

    In prefill the least popular predicted experts, up to `low_mass` of the predicted token mass,
    are loaded low, and so is every miss; in decode everything is high, except misses if
    `decode_miss_low` is set (as in the authors' port).
    """

    needs: frozenset[Need] = frozenset()

    def __init__(self, high: Bits, low: Bits, low_mass: float, decode_miss_low: bool) -> None:
        self.high = high
        self._low = low
        self._mass = low_mass
        self._decode_miss_low = decode_miss_low

    def demanded(self, layer: int, phase: Phase, routing: Routing) -> DemandedBits:
        """Low for all experts in prefill."""
        if phase == "decode" and not self._decode_miss_low:
            return {}
        return dict.fromkeys((e for row in routing.experts for e in row), self._low)

    def predicted(
        self, layer: int, phase: Phase, experts: Sequence[int], scores: Sequence[float]
    ) -> DemandedBits:
        """From the least popular upward, low while the sum of scores stays within the mass."""
        if phase == "decode" or not scores:
            return {}
        capacity = self._mass * sum(scores)
        wanted: dict[int, Bits | None] = {}
        for expert, score in zip(reversed(experts), reversed(scores), strict=True):
            capacity -= score
            if capacity < 0:
                break
            wanted[expert] = self._low
        return wanted


class GateThreshold:
    """Precision by gate weight, on a miss only (HOBBIT, arXiv 2411.01433).

    With a token's experts sorted by normalised gate weight and s_i the sum of the weights before i:
    s <= low_bits_threshold high, low_bits_threshold < s <= skip_threshold low, above skip_threshold
    skipped. With several tokens an expert gets the highest precision that any of them requires.
    """

    needs: frozenset[Need] = frozenset({"weights"})

    def __init__(
        self, high: Bits, low: Bits, low_bits_threshold: float, skip_threshold: float
    ) -> None:
        self.high = high
        self._low = low
        self._low_bits_threshold, self._skip_threshold = low_bits_threshold, skip_threshold

    def demanded(self, layer: int, phase: Phase, routing: Routing) -> DemandedBits:
        """High, low or skip for each demanded expert."""
        assert routing.weights is not None, "declared in needs"
        best: dict[int, int] = {}
        for experts, weights in zip(routing.experts, routing.weights.tolist(), strict=True):
            ranked = sorted(zip(weights, experts, strict=False), key=lambda pair: -pair[0])
            total = sum(weight for weight, _ in ranked) or 1.0
            before = 0.0
            for weight, expert in ranked:
                grade = (
                    2
                    if before <= self._low_bits_threshold
                    else 1
                    if before <= self._skip_threshold
                    else 0
                )
                best[expert] = max(grade, best.get(expert, 0))
                before += weight / total
        return {e: (None, self._low, self.high)[grade] for e, grade in best.items()}

    def predicted(
        self, layer: int, phase: Phase, experts: Sequence[int], scores: Sequence[float]
    ) -> DemandedBits:
        """High: only a miss is loaded low."""
        return {}

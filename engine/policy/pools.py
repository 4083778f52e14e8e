"""Slots in pools: one for each layer, or one for all, and one for each record size.

If a run keeps records of several precisions in separate slots, a low-precision record takes a slot
of its own size, so that fewer bits also mean more experts in the same memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from engine.types import Bits


@dataclass(frozen=True)
class Pool:
    """Slots for records of some precisions. layer: the layer that they serve, None: all layers."""

    layer: int | None
    bits: tuple[Bits, ...]
    slots: int


def pools_of_layers(slots_by_layer: Sequence[int], bits: Sequence[Bits]) -> tuple[Pool, ...]:
    """One pool per layer; a single number is a pool for all layers."""
    if len(slots_by_layer) == 1:
        return (Pool(None, tuple(bits), slots_by_layer[0]),)
    return tuple(Pool(layer, tuple(bits), slots) for layer, slots in enumerate(slots_by_layer))


def split_by_experts(slots: int, experts: Mapping[int, int]) -> dict[int, int]:
    """Split slots over layers in proportion to their experts, each at least one and at most its
    experts (largest remainders). slots: at least len(experts)."""
    total = sum(experts.values())
    fractions = {
        layer: min(count, max(1, slots * count // total)) for layer, count in experts.items()
    }
    order = sorted(experts, key=lambda layer: -(slots * experts[layer] % total))
    while (left := slots - sum(fractions.values())) != 0:
        step = 1 if left > 0 else -1
        able = [n for n in order if 1 <= fractions[n] + step <= experts[n]]
        if not able:
            break
        for layer in able[: abs(left)]:
            fractions[layer] += step
    return fractions

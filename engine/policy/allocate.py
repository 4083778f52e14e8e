"""Allocates slots to layers."""

from __future__ import annotations

import heapq
from typing import Protocol

from engine.errors import ConfigError
from engine.memory.plan import slots_by_layer
from engine.policy.predict.history import check_history
from engine.trace.trace import Trace


class Allocation(Protocol):
    """Distributes a number of slots over the layers."""

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """Slots of each layer. They sum to `slots` (at most layers * experts); each layer has at
        least one and at most `experts`."""


class UniformAllocation:
    """The same number of slots per layer, as far as possible."""

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """Distribute evenly; the remainder goes to the first layers."""
        return slots_by_layer(slots, layers)


class ShallowFirstAllocation:
    """The first layers keep all their experts, the rest share evenly (Fate, arXiv 2502.12224).

    shallow: number of such layers; -1 scales the authors' 4 of 28. If there are too few slots,
    layers are filled from the first one on and every later layer has one.
    """

    def __init__(self, shallow: int) -> None:
        self._shallow = shallow

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """Fill the first layers, then share the rest evenly."""
        full = self._shallow if self._shallow >= 0 else max(1, round(layers * 4 / 28))
        full = min(full, layers)
        fractions: list[int] = []
        left = slots
        for layer in range(full):
            fractions.append(min(experts, left - (layers - layer - 1)))
            left -= fractions[-1]
        return (*fractions, *(slots_by_layer(left, layers - full) if full < layers else ()))


class MissAllocation:
    """Slots in proportion to the misses of each layer's LRU at the uniform fraction, on a trace."""

    def __init__(self, history: Trace | None) -> None:
        self._history = _required(history, "by_misses")

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """Assign by largest quotients (Sainte-Lague) after one slot for each layer."""
        curves = hit_curves(self._history, layers, experts)
        uniform = slots_by_layer(slots, layers)
        misses = [c[experts + 1] - c[s] for c, s in zip(curves, uniform, strict=True)]
        fractions = [1] * layers
        waiting = [(-misses[layer] / 3, 1, layer) for layer in range(layers) if experts > 1]
        heapq.heapify(waiting)
        for _ in range(slots - layers):
            _, given, layer = heapq.heappop(waiting)
            fractions[layer] = given + 1
            if given + 1 < experts:
                quotient = -misses[layer] / (2 * given + 3)
                heapq.heappush(waiting, (quotient, given + 1, layer))
        return tuple(fractions)


class ProfileAllocation:
    """Each slot goes to the layer where it adds the most hits, by LRU stack distances on a
    trace."""

    def __init__(self, history: Trace | None) -> None:
        self._history = _required(history, "by_profile")

    def allocate(self, slots: int, layers: int, experts: int) -> tuple[int, ...]:
        """Greedy by marginal hits after one slot for each layer; ties go to the layer with the
        fewest slots."""
        curves = hit_curves(self._history, layers, experts)
        fractions = [1] * layers
        waiting = [
            (curve[1] - curve[2], 1, layer) for layer, curve in enumerate(curves) if experts > 1
        ]
        heapq.heapify(waiting)
        for _ in range(slots - layers):
            _, given, layer = heapq.heappop(waiting)
            fractions[layer] = given + 1
            if given + 1 < experts:
                gain = curves[layer][given + 2] - curves[layer][given + 1]
                heapq.heappush(waiting, (-gain, given + 1, layer))
        return tuple(fractions)


def hit_curves(trace: Trace, layers: int, experts: int) -> list[list[int]]:
    """For each layer: LRU hits with 0, 1, ... `experts` slots, and, last, its number of look-ups.

    An expert hits if fewer others than there are slots were used after it, as of the pass that
    demands it (Mattson et al., 1970; the experts of one pass are pinned together). Raises
    ConfigError if the trace is of another model.
    """
    check_history(trace, layers, experts)
    return [_hit_curve(trace, layer, experts) for layer in range(layers)]


def _hit_curve(trace: Trace, layer: int, experts: int) -> list[int]:
    distances = [0] * experts
    lookups = 0
    stack: list[int] = []  # the most recently used first
    for number in range(len(trace.passes)):
        demanded = trace.demands(number, layer)
        lookups += len(demanded)
        for distance, expert in enumerate(stack):
            if expert in demanded:
                distances[distance] += 1
        stack = [*sorted(demanded), *(e for e in stack if e not in demanded)]
    curve = [0]
    for found in distances:
        curve.append(curve[-1] + found)
    return [*curve, lookups]


def _required(history: Trace | None, name: str) -> Trace:
    if history is None:
        raise ConfigError(
            f"cache.allocation = {name} splits by what a recorded run did: give its trace as "
            "cache.options.trace (record it with `tune trace`), or choose uniform or shallow_first"
        )
    return history

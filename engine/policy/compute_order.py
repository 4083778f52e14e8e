"""In which order the experts of a layer pass are computed. Changes no result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from engine.policy.steps import Step


class Order(Protocol):
    """Picks the next step."""

    def next(
        self,
        pending: Sequence[Step],
        ready: Callable[[Step], bool],
        tokens: Mapping[int, int],
    ) -> Step | None:
        """The step to run next (the engine waits for it where it is not ready), or None: wait
        until any of them is. `pending`: never empty, in schedule order, without those whose
        slot another step still needs; tokens: of each expert in this layer pass."""


class RoutedOrder:
    """Schedule order, whatever has arrived."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The first step."""
        return pending[0]


class PopularityOrder:
    """Residents and predicted ones by popularity, then misses by popularity, whatever has arrived
    (Fate, arXiv 2502.12224)."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The most popular hit, else the most popular miss."""
        return max(pending, key=lambda step: (step.hit, tokens.get(step.expert.expert, 0)))


class ReadyFirstOrder:
    """Resident experts first, then as transfers complete (ProMoE, arXiv 2410.22134)."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The first step that is ready, else None."""
        return next((step for step in pending if ready(step)), None)


class HotFirstOrder:
    """Among the experts that are there the one with most tokens, then as transfers complete
    (Klotski, arXiv 2502.06888)."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The hottest step that is ready, else None."""
        there = [step for step in pending if ready(step)]
        return max(there, key=lambda step: tokens.get(step.expert.expert, 0), default=None)

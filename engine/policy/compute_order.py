"""The order in which the experts of a layer pass are computed. It changes no result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from engine.policy.steps import Step


class Order(Protocol):
    """Selects the next step."""

    def next(
        self,
        pending: Sequence[Step],
        ready: Callable[[Step], bool],
        tokens: Mapping[int, int],
    ) -> Step | None:
        """The step to run next (the engine waits for it if it is not ready), or None: wait until
        any of them is. `pending`: never empty, in schedule order, without those whose slot
        another step still needs; tokens: of each expert in this layer pass."""


class RoutedOrder:
    """Schedule order, independent of arrivals."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The first step."""
        return pending[0]


class PopularityOrder:
    """Resident and predicted experts by popularity, then misses by popularity, independent of
    arrivals (Fate, arXiv 2502.12224)."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The most popular hit, else the most popular miss."""
        return max(pending, key=lambda step: (step.hit, tokens.get(step.expert.expert, 0)))


class ReadyFirstOrder:
    """Resident experts first, then in order of arrival (ProMoE, arXiv 2410.22134)."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The first step that is ready, else None."""
        return next((step for step in pending if ready(step)), None)


class HotFirstOrder:
    """The ready expert with most tokens first, then in order of arrival (Klotski, arXiv
    2502.06888)."""

    def next(
        self, pending: Sequence[Step], ready: Callable[[Step], bool], tokens: Mapping[int, int]
    ) -> Step | None:
        """The ready step with most tokens, else None."""
        there = [step for step in pending if ready(step)]
        return max(there, key=lambda step: tokens.get(step.expert.expert, 0), default=None)

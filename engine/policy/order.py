"""In which order the experts of a layer pass are computed. Changes no result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from engine.policy.expert_cache import Step


class Order(Protocol):
    """Picks the next step."""

    def next(self, pending: Sequence[Step], ready: Callable[[Step], bool]) -> Step | None:
        """The step to run next (the engine waits for it where it is not ready), or None: wait
        until any of them is. `pending` is never empty and stands in schedule order."""


class RoutedOrder:
    """Schedule order, whatever has arrived."""

    def next(self, pending: Sequence[Step], ready: Callable[[Step], bool]) -> Step | None:
        """The first step."""
        return pending[0]


class ReadyFirstOrder:
    """Resident experts first, then as transfers complete (ProMoE, arXiv 2410.22134)."""

    def next(self, pending: Sequence[Step], ready: Callable[[Step], bool]) -> Step | None:
        """The first step that is ready, else None."""
        return next((step for step in pending if ready(step)), None)

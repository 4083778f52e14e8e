"""The eviction contract.

An Eviction keeps its own bookkeeping of residents, told through use/forget, and picks victims. It
sees the logical clock only: calls come in routing order at gate events, never in order of arrival.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from engine.types import ExpertId


class Eviction(Protocol):
    """Decides the victim among the evictable residents of one pool of slots."""

    keeps: bool
    """False: nothing outlives the layer pass that demanded it."""

    def use(self, expert: ExpertId) -> None:
        """The expert was demanded or inserted (a prefetch counts as a use)."""

    def forget(self, expert: ExpertId) -> None:
        """The expert left."""

    def victim(self, candidates: Collection[ExpertId]) -> ExpertId:
        """One of `candidates` (never empty, all resident and unpinned)."""

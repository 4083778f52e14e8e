"""The order in which queued transfers get their next chunk.

Keys are opaque; the engine takes one chunk of the head at a time, so a queue that changes its head
preempts between chunks. Not thread-safe by itself: the transfer engine holds its lock.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Protocol, TypeVar

K = TypeVar("K", bound=Hashable)


class TransferQueue(Protocol[K]):
    """Orders transfers. Every key is in the queue at most once."""

    def push(self, key: K, *, urgent: bool) -> None:
        """Add a transfer: urgent for a demanded expert, else a prediction."""

    def promote(self, key: K) -> None:
        """Promote a predicted transfer that is now demanded."""

    def demote(self, key: K) -> None:
        """Move a stale prediction behind all others without cancelling it."""

    def remove(self, key: K) -> bool:
        """Remove a key; False if it was not there."""

    def head(self) -> K | None:
        """The key whose chunk is next; None if the queue is empty."""

    def __len__(self) -> int:
        """Number of keys in the queue."""


class FifoQueue(TransferQueue[K]):
    """First come, first served; predictions delay demands."""

    def __init__(self) -> None:
        self._keys: dict[K, None] = {}

    def push(self, key: K, *, urgent: bool) -> None:
        """Append the key."""
        self._keys[key] = None

    def promote(self, key: K) -> None:
        """Does nothing: the key keeps its place."""

    def demote(self, key: K) -> None:
        """Does nothing: the key keeps its place."""

    def remove(self, key: K) -> bool:
        """Drop the key."""
        return self._keys.pop(key, self) is not self

    def head(self) -> K | None:
        """The oldest key."""
        return next(iter(self._keys), None)

    def __len__(self) -> int:
        return len(self._keys)


class TwoPriorityQueue(TransferQueue[K]):
    """Demands before predictions before stale predictions, each first come, first served.

    ProMoE, arXiv 2410.22134, algorithm 2; stale predictions stay at the end instead of being
    cancelled.
    """

    def __init__(self) -> None:
        self._levels: tuple[dict[K, None], ...] = ({}, {}, {})

    def push(self, key: K, *, urgent: bool) -> None:
        """Append the key to its level."""
        self._levels[0 if urgent else 1][key] = None

    def promote(self, key: K) -> None:
        """Move the key to the end of the demands."""
        if self.remove(key):
            self._levels[0][key] = None

    def demote(self, key: K) -> None:
        """Move the key to the end of the stale predictions."""
        if self.remove(key):
            self._levels[2][key] = None

    def remove(self, key: K) -> bool:
        """Drop the key from its level."""
        return any(level.pop(key, self) is not self for level in self._levels)

    def head(self) -> K | None:
        """The oldest key of the most urgent level."""
        return next((next(iter(level)) for level in self._levels if level), None)

    def __len__(self) -> int:
        return sum(map(len, self._levels))

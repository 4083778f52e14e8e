"""Holds back text for a client while it may be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Released(NamedTuple, Generic[T]):
    """Output of the gate: text, and the items pushed with the pieces that begin in it. ended: a
    stop string was met; the text ends before it."""

    text: str
    items: tuple[T, ...]
    ended: bool


class StopGate(Generic[T]):
    """Finds stop strings in a stream. stop: non-empty strings; without any, all text passes at
    once."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self._items: list[tuple[int, T]] = []  # start position in the held text of each item

    def push(self, piece: str, item: T) -> Released[T]:
        """Add a piece of text and its item."""
        self._items.append((len(self._held), item))
        self._held += piece
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        if places:
            return self._release(min(places), ended=True)
        return self._release(len(self._held) - self._may_begin(), ended=False)

    def finish(self, rest: str = "") -> Released[T]:
        """End the stream: release the held text, followed by `rest`."""
        self._held += rest
        places = [place for word in self._stop if (place := self._held.find(word)) >= 0]
        return self._release(min(places, default=len(self._held)), ended=bool(places))

    def _may_begin(self) -> int:
        """Length of the end of the held text that may begin a stop string."""
        longest = max((len(word) for word in self._stop), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(word.startswith(self._held[-size:]) for word in self._stop):
                return size
        return 0

    def _release(self, end: int, *, ended: bool) -> Released[T]:
        text, self._held = self._held[:end], self._held[end:]
        out = tuple(item for start, item in self._items if start < end or not (self._held or ended))
        kept = [(start - end, item) for start, item in self._items[len(out) :]]
        self._items = [] if ended else kept
        return Released(text, out, ended)

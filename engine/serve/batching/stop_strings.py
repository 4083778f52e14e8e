"""Holds back text for a client while it may be the beginning of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Shown(NamedTuple, Generic[T]):
    """An item, and the text of its piece that goes out."""

    text: str
    item: T


class Released(NamedTuple, Generic[T]):
    """Output of the gate: text, and the items whose texts add up to it. ended: a stop string was
    met; the text ends before it."""

    text: str
    items: tuple[Shown[T], ...]
    ended: bool


class StopGate(Generic[T]):
    """Finds stop strings in a stream. stop: non-empty strings; without any, all text passes at
    once.

    Pieces go out whole, so that text and items always agree; an empty piece (a part of a character)
    goes out with the text behind it. Only the piece in which a stop string begins is cut.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held: list[Shown[T]] = []

    def push(self, piece: str, item: T, *, armed: bool = True) -> Released[T]:
        """Add a piece of text and its item. armed: whether a stop string may end the text here;
        if not, everything passes."""
        self._held.append(Shown(piece, item))
        text = self._text()
        if not armed:
            return self._release_whole(len(text))
        if (place := self._place(text)) is not None:
            return self._cut(place)
        return self._release_whole(len(text) - self._may_begin(text))

    def finish(self, rest: str = "") -> Released[T]:
        """End the stream: release all that is held, with `rest` behind the last piece."""
        if rest and self._held:
            last = self._held.pop()
            self._held.append(Shown(last.text + rest, last.item))
        text = self._text() or rest
        if (place := self._place(text)) is not None:
            return self._cut(place)
        items, self._held = tuple(self._held), []
        return Released(text, items, False)

    def _text(self) -> str:
        return "".join(shown.text for shown in self._held)

    def _place(self, text: str) -> int | None:
        """Where the first stop string begins, None if there is none."""
        places = [place for word in self._stop if (place := text.find(word)) >= 0]
        return min(places, default=None)

    def _may_begin(self, text: str) -> int:
        """Length of the end of the text that may begin a stop string."""
        longest = max((len(word) for word in self._stop), default=1) - 1
        for size in range(min(longest, len(text)), 0, -1):
            if any(word.startswith(text[-size:]) for word in self._stop):
                return size
        return 0

    def _release_whole(self, limit: int) -> Released[T]:
        """Release the pieces that end at `limit` or before, empty ones only before text."""
        length, count = 0, 0
        for number, shown in enumerate(self._held):
            if length + len(shown.text) > limit:
                break
            length += len(shown.text)
            if shown.text:
                count = number + 1
        out, self._held = tuple(self._held[:count]), self._held[count:]
        return Released("".join(shown.text for shown in out), out, False)

    def _cut(self, place: int) -> Released[T]:
        """Release the text before `place` and drop the rest."""
        out: list[Shown[T]] = []
        left = place
        for shown in self._held:
            if not left:
                break
            out.append(Shown(shown.text[:left], shown.item))
            left -= len(out[-1].text)
        text, self._held = self._text()[:place], []
        return Released(text, tuple(out), True)

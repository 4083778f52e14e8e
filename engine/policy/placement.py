"""Where the tokens of a missing expert are computed: after moving it, or beside it on the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Placement(Protocol):
    """Chooses between moving weights to the device and computing beside them on the host."""

    uses_host: bool

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """Which of the missing experts of one demand, (expert, tokens) each, the host computes."""


class DevicePlacement:
    """Everything on the device."""

    uses_host = False

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """None of them."""
        return frozenset()


class HostBelow:
    """Cold experts stay where they are: those with at most `tokens` tokens run on the host (MoNDE,
    arXiv 2405.18832; Fiddler has the same threshold)."""

    uses_host = True

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """Those below the threshold."""
        return frozenset(expert for expert, tokens in misses if tokens <= self._tokens)


class HostSplit:
    """The hottest fraction `moved` of the misses moves, the rest runs on the host.

    moved: q = p / (p + c) with the measured rates p of the link and c of host compute while both
    run. What one demand cannot split evenly is carried over to the next, so that the fraction holds
    in the long run and the decision stays on the logical clock.
    """

    uses_host = True

    def __init__(self, moved: float) -> None:
        self._moved = moved
        self._owed = 0.0

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The coldest, as many as the fraction asks for."""
        self._owed += self._moved * len(misses)
        count = min(len(misses), round(self._owed))
        self._owed -= count
        hottest_first = sorted(misses, key=lambda miss: -miss[1])
        return frozenset(expert for expert, _ in hottest_first[count:])

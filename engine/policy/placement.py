"""Where the tokens of a missing expert are computed: on the device after a transfer, or on the
host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Placement(Protocol):
    """Chooses between moving weights to the device and computing on the host."""

    uses_host: bool

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The missing experts of one demand, given as (expert, tokens), that the host computes."""


class DevicePlacement:
    """Computes everything on the device."""

    uses_host = False

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """Return the empty set."""
        return frozenset()


class HostBelow:
    """Experts with at most `tokens` tokens run on the host (MoNDE, arXiv 2405.18832; Fiddler has
    the same threshold)."""

    uses_host = True

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The experts with at most the threshold's tokens."""
        return frozenset(expert for expert, tokens in misses if tokens <= self._tokens)


class HostSplit:
    """The fraction `moved` of the misses with the most tokens moves, the rest runs on the host.

    moved: q = p / (p + c) with the measured rates p of the link and c of host compute while both
    run. The rounding remainder of one demand is carried over to the next, so that the fraction
    holds in the long run and the decision stays on the logical clock.
    """

    uses_host = True

    def __init__(self, moved: float) -> None:
        self._moved = moved
        self._owed = 0.0

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The experts with the fewest tokens, as many as the fraction requires."""
        self._owed += self._moved * len(misses)
        count = min(len(misses), round(self._owed))
        self._owed -= count
        hottest_first = sorted(misses, key=lambda miss: -miss[1])
        return frozenset(expert for expert, _ in hottest_first[count:])

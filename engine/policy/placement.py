"""Where the tokens of a missing expert are computed: on the device after a transfer, or on the
host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from engine.facts.timings import at


class Placement(Protocol):
    """Chooses between moving weights to the device and computing on the host."""

    uses_host: bool

    def begin_layer(self) -> None:
        """A layer pass begins: its demands follow, one for each micro-batch."""

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The missing experts of one demand, given as (expert, tokens), that the host computes."""

    def admitted(self, on_host: Sequence[int]) -> Sequence[int]:
        """Of the experts that the host computes in this layer pass, in routing order, those that
        move to the device behind everything that is demanded."""


class _NothingMoves:
    """What the host computes stays there."""

    def begin_layer(self) -> None:
        """Does nothing: demands are decided one by one."""

    def admitted(self, on_host: Sequence[int]) -> Sequence[int]:
        """Return none."""
        return ()


class DevicePlacement(_NothingMoves):
    """Computes everything on the device."""

    uses_host = False

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """Return the empty set."""
        return frozenset()


class HostBelow(_NothingMoves):
    """Experts with at most `tokens` tokens run on the host (MoNDE, arXiv 2405.18832; Fiddler has
    the same threshold)."""

    uses_host = True

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The experts with at most the threshold's tokens."""
        return frozenset(expert for expert, tokens in misses if tokens <= self._tokens)


class HostSplit(_NothingMoves):
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


class EarliestEnd:
    """A miss is computed where it ends first: on the host, after what the host has to compute
    already, or on the device, after what the link has to carry (list scheduling by the earliest
    finish time, as HEFT does, Topcuoglu et al. 2002). Those with most tokens choose first.

    While the host computes, the link has time left: as many of its experts move behind. The rest of
    a transfer counts for later layer passes, so that decisions stay on the logical clock.

    ratios: seconds of an expert on the host over seconds of its transfer, by tokens.
    """

    uses_host = True

    def __init__(self, ratios: Mapping[int, float]) -> None:
        self._ratios = dict(ratios)
        self._left = 0.0  # transfers for which the link has had time
        self.begin_layer()

    def begin_layer(self) -> None:
        """Host and link have nothing to do."""
        self._host_ends = self._link_ends = 0.0  # in transfers

    def on_host(self, misses: Sequence[tuple[int, int]]) -> frozenset[int]:
        """The experts that end first there."""
        chosen = []
        for expert, tokens in sorted(misses, key=lambda miss: -miss[1]):
            computed = self._host_ends + at(self._ratios, tokens)
            moved = self._link_ends + 1.0
            if computed <= moved:
                self._host_ends = computed
                chosen.append(expert)
            else:
                self._link_ends = moved
        return frozenset(chosen)

    def admitted(self, on_host: Sequence[int]) -> Sequence[int]:
        """As many as the link carries while the host computes, the first ones."""
        self._left += max(0.0, self._host_ends - self._link_ends)
        count = min(len(on_host), int(self._left))
        self._left = min(1.0, self._left - count)
        return on_host[:count]

"""Known future demands, for the oracle predictor and Belady's eviction.

Filled from a trace of the very run that follows; `known` is False while it is empty.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from engine.trace.trace import Trace
from engine.types import ExpertId

NEVER = 1 << 60


class Future:
    """Demands by position; position = pass * layers + layer, advanced by the policy."""

    def __init__(self, layers: int) -> None:
        self.layers = layers
        self.position = -1
        self._pass = -1
        self._uses: dict[ExpertId, list[int]] = {}
        self._demands: list[tuple[int, ...]] = []

    @property
    def known(self) -> bool:
        """Whether a trace was loaded."""
        return bool(self._demands)

    def load(self, trace: Trace, passes: Iterable[int] | None = None) -> None:
        """Load the demands of this trace's passes (or of these pass numbers), from the first on."""
        self.position = self._pass = -1
        self._uses, self._demands = {}, []
        for number in range(len(trace.passes)) if passes is None else passes:
            for layer in range(self.layers):
                wanted = tuple(sorted(trace.demands(number, layer)))
                for expert in wanted:
                    self._uses.setdefault(ExpertId(layer, expert), []).append(len(self._demands))
                self._demands.append(wanted)

    def begin_pass(self) -> None:
        """Advance to the next pass, before its first layer."""
        self._pass += 1
        self.position = self._pass * self.layers - 1

    def begin_layer(self, layer: int) -> None:
        """Advance to this layer of the present pass."""
        self.position = self._pass * self.layers + layer

    def next_use(self, expert: ExpertId) -> int:
        """Position of the first demand after the present one; NEVER if there is none."""
        uses = self._uses.get(expert, ())
        place = bisect_right(uses, self.position)
        return uses[place] if place < len(uses) else NEVER

    def upcoming(self, steps: int) -> list[tuple[int, tuple[int, ...]]]:
        """(layer, experts) of the next `steps` layer passes."""
        first = self.position + 1
        return [
            (position % self.layers, self._demands[position])
            for position in range(first, min(first + steps, len(self._demands)))
        ]

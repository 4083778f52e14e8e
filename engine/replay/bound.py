"""The upper bound of any cache: Belady's rule with bypass, on the set of demands of a layer pass.

With all records of one size, it is optimal to keep after every layer pass, among residents and
demands, the experts with the earliest next use (L. A. Belady, 1966, applied to sets: a demand
passes through a slot for its layer pass and need not stay).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.policy.future import NEVER, Future
from engine.trace.trace import Trace
from engine.types import ExpertId, Phase


@dataclass(frozen=True)
class Bound:
    """Look-ups and the possible hits, by phase."""

    hits: dict[Phase, int]
    lookups: dict[Phase, int]

    def hit_rate(self, phase: Phase) -> float:
        """The fraction of look-ups that hit; 0 if there were none."""
        return self.hits[phase] / self.lookups[phase] if self.lookups[phase] else 0.0


def best_hits(
    trace: Trace, slots_by_layer: Sequence[int], counted: Iterable[int] | None = None
) -> Bound:
    """Apply Belady's rule to the trace, with one pool per layer, or a single shared one.

    counted: numbers of the passes that count (all by default); the others warm the cache.
    """
    future = Future(trace.layers)
    future.load(trace)
    kept: list[set[ExpertId]] = [set() for _ in slots_by_layer]
    hits: dict[Phase, int] = {"prefill": 0, "decode": 0}
    lookups: dict[Phase, int] = {"prefill": 0, "decode": 0}
    scope = None if counted is None else frozenset(counted)
    for number, item in enumerate(trace.passes):
        future.begin_pass()
        for layer in range(trace.layers):
            future.begin_layer(layer)
            pool = layer if len(slots_by_layer) > 1 else 0
            wanted = {ExpertId(layer, expert) for expert in trace.demands(number, layer)}
            if scope is None or number in scope:
                hits[item.phase] += len(wanted & kept[pool])
                lookups[item.phase] += len(wanted)
            both = kept[pool] | wanted
            if len(both) > slots_by_layer[pool]:
                ranked = sorted(both, key=lambda e: (future.next_use(e), e))
                both = {e for e in ranked[: slots_by_layer[pool]] if future.next_use(e) != NEVER}
            kept[pool] = both
    return Bound(hits, lookups)

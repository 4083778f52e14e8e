"""The logical expert cache: who lives in which slot, decided at gate events only.

In: demands (the router has chosen) and predictions. Out: steps to run and fetches to start. A
fetch counts as arrived the moment it is decided, wherever its bytes stand, so a run repeats exactly
and a replay of its trace equals it. Holds no bytes and waits for nothing.

One layer pass: begin(layer), demand(...) once for each micro-batch, finish(), end().
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from engine.policy.evict.base import Eviction
from engine.types import ExpertId


@dataclass(frozen=True)
class Step:
    """One expert of the current layer pass.

    hit: it was resident (perhaps still on its way); after: the expert of an earlier step whose
    slot it takes over once that has been computed (None: the slot is free now).
    """

    expert: ExpertId
    slot: int
    hit: bool
    after: ExpertId | None = None


@dataclass(frozen=True)
class Fetch:
    """A decided prefetch: load `expert` into `slot`."""

    expert: ExpertId
    slot: int


@dataclass
class _Pool:
    free: list[int]
    eviction: Eviction
    slots: dict[ExpertId, int] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        return len(self.free) + len(self.slots)


class ExpertCache:
    """Slots in one pool a layer, or in one pool for all.

    slots_by_layer: slots of each MoE layer (layer scope), or a single number (shared scope).
    """

    def __init__(
        self, slots_by_layer: Sequence[int], eviction: Callable[[], Eviction], *, layers: int
    ) -> None:
        if len(slots_by_layer) not in (1, layers):
            raise ValueError(f"{len(slots_by_layer)} pools for {layers} layers")
        if min(slots_by_layer) < 1:
            raise ValueError("every pool needs at least one slot")
        first = 0
        self._pools: list[_Pool] = []
        for count in slots_by_layer:
            free = list(range(first + count - 1, first - 1, -1))
            self._pools.append(_Pool(free, eviction()))
            first += count
        self.slots = first
        self._layer = -1
        self._schedule: list[Step] = []
        self._demanded: dict[ExpertId, None] = {}
        self._deferred: list[ExpertId] = []
        self._last_demand: dict[int, frozenset[ExpertId]] = {}

    def residents(self, layer: int) -> tuple[ExpertId, ...]:
        """All residents of this layer."""
        return tuple(e for e in self._pool(layer).slots if e.layer == layer)

    def begin(self, layer: int) -> None:
        """Start a layer pass."""
        assert self._layer < 0, "the former layer pass was not ended"
        self._layer = layer
        self._schedule, self._deferred = [], []
        self._demanded = {}

    def demand(self, indices: Iterable[int]) -> list[Step]:
        """The router of one micro-batch chose these experts (in routing order).

        Returns the new steps that have a slot; what found none is deferred to finish().
        """
        pool = self._pool(self._layer)
        fresh = [
            expert
            for expert in (ExpertId(self._layer, index) for index in dict.fromkeys(indices))
            if expert not in self._demanded
        ]
        self._demanded.update(dict.fromkeys(fresh))
        steps: list[Step] = []
        for expert in fresh:
            slot = pool.slots.get(expert)
            if slot is not None:
                pool.eviction.use(expert)
                steps.append(Step(expert, slot, hit=True))
        self._schedule.extend(steps)
        for expert in fresh:
            if expert in pool.slots:
                continue
            # Other micro-batches may still want what the last pass used: those victims wait.
            slot = self._take_slot(pool, expert, spare=self._last_demand.get(self._layer, ()))
            if slot is None:
                self._deferred.append(expert)
                continue
            steps.append(Step(expert, slot, hit=False))
            self._schedule.append(steps[-1])
        return steps

    def finish(self) -> list[Step]:
        """All micro-batches have arrived: place the deferred experts, first into slots of experts
        that nobody demanded, then, in waves, into slots that earlier steps of this pass free."""
        pool = self._pool(self._layer)
        steps: list[Step] = []
        waves = 0
        for expert in self._deferred:
            slot = self._take_slot(pool, expert)
            if slot is not None:
                steps.append(Step(expert, slot, hit=False))
            else:
                donor = self._schedule[waves]
                waves += 1
                self._release(pool, donor.expert)
                pool.slots[expert] = pool.free.pop()
                pool.eviction.use(expert)
                steps.append(Step(expert, donor.slot, hit=False, after=donor.expert))
            self._schedule.append(steps[-1])
        self._deferred = []
        self._last_demand[self._layer] = frozenset(self._demanded)
        return steps

    def end(self) -> None:
        """The layer pass is computed: nothing is pinned any more."""
        pool = self._pool(self._layer)
        if not pool.eviction.keeps:
            for expert in [e for e in self._demanded if e in pool.slots]:
                self._release(pool, expert)
        self._demanded = {}
        self._layer = -1

    def prefetch(self, layer: int, indices: Iterable[int]) -> list[Fetch]:
        """Predicted experts of a later layer, best first. Residents are touched, the others take
        slots as far as unpinned ones can be had."""
        pool = self._pool(layer)
        wanted = [ExpertId(layer, index) for index in dict.fromkeys(indices)][: pool.capacity]
        fetches = []
        for expert in wanted:
            if expert in pool.slots:
                pool.eviction.use(expert)
        for expert in wanted:
            if expert in pool.slots:
                continue
            slot = self._take_slot(pool, expert, spare=wanted)
            if slot is None:
                break
            fetches.append(Fetch(expert, slot))
        return fetches

    def check_integrity(self) -> None:
        """Raise AssertionError if two experts share a slot or one got lost (for tests)."""
        seen: list[int] = []
        for pool in self._pools:
            seen.extend(pool.free)
            seen.extend(pool.slots.values())
        assert sorted(seen) == list(range(self.slots)), f"slots lost or doubled: {sorted(seen)}"

    def _pool(self, layer: int) -> _Pool:
        return self._pools[layer if len(self._pools) > 1 else 0]

    def _take_slot(
        self, pool: _Pool, expert: ExpertId, spare: Iterable[ExpertId] = ()
    ) -> int | None:
        if not pool.free:
            kept = set(spare)
            candidates = [e for e in pool.slots if e not in self._demanded and e not in kept]
            if not candidates:
                return None
            self._release(pool, pool.eviction.victim(candidates))
        slot = pool.free.pop()
        pool.slots[expert] = slot
        pool.eviction.use(expert)
        return slot

    def _release(self, pool: _Pool, expert: ExpertId) -> None:
        pool.free.append(pool.slots.pop(expert))
        pool.eviction.forget(expert)

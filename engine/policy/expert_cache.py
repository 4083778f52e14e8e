"""The logical expert cache: who lives in which slot, decided at gate events only.

In: demands (the router has chosen) and predictions. Out: steps to run and fetches to start. A
fetch counts as arrived the moment it is decided, wherever its bytes stand, so a run repeats exactly
and a replay of its trace equals it. Holds no bytes and waits for nothing.

One layer pass: begin(layer), demand(...) once for each micro-batch, finish(), end().
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.policy.evict.base import Eviction
from engine.policy.precision import Wanted
from engine.types import Bits, ExpertId

ON_HOST = -1
_EVERYTHING_HIGH: Wanted = {}


class Step(NamedTuple):
    """One expert of the current layer pass.

    slot: where it lies on the device, ON_HOST where the host computes it; bits: of the record; hit:
    it was resident (perhaps still on its way); after: the expert of an earlier step whose slot it
    takes over once that has been computed (None: the slot is free now).
    """

    expert: ExpertId
    slot: int
    bits: Bits
    hit: bool
    after: ExpertId | None = None


class Fetch(NamedTuple):
    """A decided prefetch: load `expert` into `slot`."""

    expert: ExpertId
    slot: int
    bits: Bits


@dataclass(slots=True)
class _Resident:
    slot: int
    bits: Bits


@dataclass
class _Pool:
    free: list[int]
    eviction: Eviction
    residents: dict[ExpertId, _Resident] = field(default_factory=dict)

    @property
    def capacity(self) -> int:
        return len(self.free) + len(self.residents)


class ExpertCache:
    """Slots in one pool a layer, or in one pool for all.

    slots_by_layer: slots of each MoE layer (layer scope), or a single number (shared scope);
    eviction: makes the bookkeeping of one pool; high: bits of what nobody wants otherwise;
    hold_predicted: what was predicted for a layer yet to come is evicted only when nothing else
    can be (HOBBIT's mask, ScratchPipe's hold mask).
    """

    def __init__(
        self,
        slots_by_layer: Sequence[int],
        eviction: Callable[[], Eviction],
        *,
        layers: int,
        high: Bits = 16,
        hold_predicted: bool = False,
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
        self._high = high
        self._hold = hold_predicted
        self._layer = -1
        self._schedule: list[Step] = []
        self._demanded: dict[ExpertId, None] = {}
        self._deferred: list[ExpertId] = []
        self._wanted: dict[int, Bits | None] = {}
        self._last_demand: dict[int, frozenset[ExpertId]] = {}
        self._predicted: dict[int, frozenset[ExpertId]] = {}

    @property
    def shared(self) -> bool:
        """Whether one pool serves all layers."""
        return len(self._pools) == 1

    @property
    def slots_by_pool(self) -> tuple[int, ...]:
        """Slots of each pool."""
        return tuple(pool.capacity for pool in self._pools)

    def begin_sequences(self) -> None:
        """New sequences begin."""
        for pool in self._pools:
            pool.eviction.begin_sequences()

    def residents(self, layer: int) -> tuple[ExpertId, ...]:
        """All residents of this layer."""
        return tuple(e for e in self._pool(layer).residents if e.layer == layer)

    def begin(self, layer: int) -> None:
        """Start a layer pass."""
        assert self._layer < 0, "the former layer pass was not ended"
        self._layer = layer
        self._schedule, self._deferred = [], []
        self._demanded, self._wanted = {}, {}
        self._pool(layer).eviction.begin_layer(layer)

    def missing(self, layer: int, indices: Iterable[int]) -> list[int]:
        """Those that are neither resident nor demanded before in the present pass."""
        residents = self._pool(layer).residents
        experts = [(index, ExpertId(layer, index)) for index in indices]
        return [i for i, e in experts if e not in residents and e not in self._demanded]

    def demand(
        self,
        indices: Iterable[int],
        wanted: Wanted = _EVERYTHING_HIGH,
        on_host: Collection[int] = (),
        *,
        more_to_come: bool = False,
    ) -> list[Step]:
        """The router of one micro-batch chose these experts (in routing order).

        wanted: their precisions; on_host: those that the host computes if they are missing;
        more_to_come: other micro-batches are still to be routed in this layer pass. Returns
        the new steps that have a slot or run on the host; what found no slot is deferred to
        finish(); what is to be skipped has no step.
        """
        pool = self._pool(self._layer)
        residents, eviction, demanded = pool.residents, pool.eviction, self._demanded
        if wanted:
            self._wanted.update(wanted)
        steps: list[Step] = []
        missing: list[ExpertId] = []
        for index in indices:
            expert = ExpertId(self._layer, index)
            if expert in demanded:
                continue
            demanded[expert] = None
            resident = residents.get(expert)
            if resident is None:
                missing.append(expert)
                continue
            bits = wanted.get(index, self._high) if wanted else self._high
            hit = bits is None or resident.bits >= bits
            if not hit and bits is not None:  # too coarse: loaded again into its own slot
                resident.bits = bits
            eviction.use(expert, high=bits == self._high)
            steps.append(Step(expert, resident.slot, resident.bits, hit))
        # Other micro-batches may still want what the last pass used: those victims wait.
        spare = self._last_demand.get(self._layer, ()) if more_to_come else ()
        for expert in missing:
            bits = wanted.get(expert.expert, self._high)
            if bits is None:
                continue
            if expert.expert in on_host:
                steps.append(Step(expert, ON_HOST, bits, hit=False))
                continue
            slot = self._take_slot(pool, expert, bits, spare)
            if slot is None:
                self._deferred.append(expert)
                continue
            steps.append(Step(expert, slot, bits, hit=False))
        self._schedule.extend(steps)
        return steps

    def finish(self) -> list[Step]:
        """All micro-batches have arrived: place the deferred experts, first into slots of experts
        that nobody demanded, then, in waves, into slots that earlier steps of this pass free."""
        pool = self._pool(self._layer)
        steps: list[Step] = []
        donors = (step for step in self._schedule if step.slot != ON_HOST)
        for expert in self._deferred:
            bits = self._wanted.get(expert.expert, self._high) or self._high
            slot = self._take_slot(pool, expert, bits)
            if slot is not None:
                steps.append(Step(expert, slot, bits, hit=False))
            else:
                donor = next(donors)
                self._release(pool, donor.expert)
                pool.residents[expert] = _Resident(pool.free.pop(), bits)
                pool.eviction.insert(expert, high=bits == self._high)
                steps.append(Step(expert, donor.slot, bits, hit=False, after=donor.expert))
            self._schedule.append(steps[-1])
        self._deferred = []
        self._last_demand[self._layer] = frozenset(self._demanded)
        self._predicted.pop(self._layer, None)
        return steps

    def end(self) -> None:
        """The layer pass is computed: nothing is pinned any more."""
        pool = self._pool(self._layer)
        if not pool.eviction.keeps:
            for expert in [e for e in pool.residents if e.layer == self._layer]:
                self._release(pool, expert)
        self._demanded = {}
        self._layer = -1

    def prefetch(
        self,
        layer: int,
        indices: Iterable[int],
        wanted: Wanted = _EVERYTHING_HIGH,
        scores: Mapping[int, float] | None = None,
    ) -> list[Fetch]:
        """Predicted experts of a later layer, best first. Residents are touched, the others take
        slots as far as unpinned ones can be had.

        wanted: precisions other than high; scores: of each expert where the predictor has them.
        """
        pool = self._pool(layer)
        experts = [ExpertId(layer, i) for i in dict.fromkeys(indices)][: pool.capacity]
        if self._hold:
            self._predicted[layer] = frozenset(experts) | self._predicted.get(layer, frozenset())
        missing = []
        for expert in experts:
            if expert in pool.residents:
                pool.eviction.use(expert)
                if scores:
                    pool.eviction.expect(expert, scores.get(expert.expert, 0.0))
            else:
                missing.append(expert)
        fetches = []
        for expert in missing:
            bits = wanted.get(expert.expert, self._high) or self._high
            slot = self._take_slot(pool, expert, bits, spare=experts)
            if slot is None:
                break
            if scores:
                pool.eviction.expect(expert, scores.get(expert.expert, 0.0))
            fetches.append(Fetch(expert, slot, bits))
        return fetches

    def check_integrity(self) -> None:
        """Raise AssertionError if two experts share a slot or one got lost (for tests)."""
        seen: list[int] = []
        for pool in self._pools:
            seen.extend(pool.free)
            seen.extend(resident.slot for resident in pool.residents.values())
        assert sorted(seen) == list(range(self.slots)), f"slots lost or doubled: {sorted(seen)}"

    def _pool(self, layer: int) -> _Pool:
        return self._pools[layer if len(self._pools) > 1 else 0]

    def _take_slot(
        self, pool: _Pool, expert: ExpertId, bits: Bits, spare: Iterable[ExpertId] = ()
    ) -> int | None:
        if not pool.free:
            kept = set(spare)
            candidates = [e for e in pool.residents if e not in self._demanded and e not in kept]
            if self._hold and candidates:
                held = frozenset().union(*self._predicted.values())
                candidates = [e for e in candidates if e not in held] or candidates
            if not candidates:
                return None
            self._release(pool, pool.eviction.victim(candidates, expert))
        slot = pool.free.pop()
        pool.residents[expert] = _Resident(slot, bits)
        pool.eviction.insert(expert, high=bits == self._high)
        return slot

    def _release(self, pool: _Pool, expert: ExpertId) -> None:
        pool.free.append(pool.residents.pop(expert).slot)
        pool.eviction.forget(expert)

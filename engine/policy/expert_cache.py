"""The logical expert cache: which expert is in which slot, decided at gate events only.

In: demands (the router has chosen) and predictions. Out: steps to run and fetches to start. A fetch
counts as arrived as soon as it is decided, wherever its bytes are, so a run repeats exactly and a
replay of its trace equals it. Holds no bytes and waits for nothing.

One layer pass: begin(layer), demand(...) once for each micro-batch, finish(), end().
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from engine.policy.evict.base import Eviction
from engine.policy.pools import Pool
from engine.policy.precision import DemandedBits
from engine.policy.steps import ON_HOST, Fetch, LayerPass, Step
from engine.types import Bits, ExpertId

_NOBODY = ExpertId(-1, -1)  # stands for no expert when slots are vacated
_EVERYTHING_HIGH: DemandedBits = {}


class _Ids(dict[int, ExpertId]):
    """The experts of a layer by index, created once: decisions name them many times per token."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self._layer = layer

    def __missing__(self, index: int) -> ExpertId:
        made = self[index] = ExpertId(self._layer, index)
        return made


_Victims = dict["_Pool", list[ExpertId]]
"""Eviction candidates of one call, by pool: collected once per call."""


@dataclass(slots=True)
class _Resident:
    slot: int
    bits: Bits


@dataclass(eq=False)
class _Pool:
    slots: range
    free: list[int]
    eviction: Eviction
    residents: dict[ExpertId, _Resident] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
    elastic: int = 0

    @property
    def capacity(self) -> int:
        return len(self.slots) - len(self.closed)


class ExpertCache:
    """Slots in pools, each for one layer or for all and for records of some precisions.

    Slots are numbered in the order of the pools. A record lies in the pool of its layer and bits;
    pools are independent, so an expert may be resident at two precisions.

    eviction: creates the bookkeeping of one pool; high: default bits; hold_predicted: an expert
    predicted for a later layer is evicted only if nothing else can be (HOBBIT's mask, ScratchPipe's
    hold mask); elastic: number of elastic slots of each pool, see open_elastic.
    """

    def __init__(
        self,
        pools: Sequence[Pool],
        eviction: Callable[[], Eviction],
        *,
        layers: int,
        high: Bits = 16,
        hold_predicted: bool = False,
        elastic: Sequence[int] = (),
    ) -> None:
        self.pools = tuple(pools)
        first = 0
        self._pools: list[_Pool] = []
        self._by_layer: list[dict[Bits, _Pool]] = [{} for _ in range(layers)]
        for pool in pools:
            if pool.slots < 1:
                raise ValueError("every pool needs at least one slot")
            slots = range(first, first + pool.slots)
            own = _Pool(slots, list(reversed(slots)), eviction())
            self._pools.append(own)
            for layer in range(layers) if pool.layer is None else (pool.layer,):
                self._by_layer[layer].update(dict.fromkeys(pool.bits, own))
            first += pool.slots
        if not all(self._by_layer):
            raise ValueError(f"{len(pools)} pools leave some of {layers} layers without a slot")
        # the pools of a layer, the highest precision first
        self._of_layer = [
            tuple(dict.fromkeys(by_bits[bits] for bits in sorted(by_bits, reverse=True)))
            for by_bits in self._by_layer
        ]
        self.slots = first
        for own, count in zip(self._pools, elastic, strict=False):
            own.elastic = count
        self._ids = tuple(_Ids(layer) for layer in range(layers))
        self._high = high
        self._hold = hold_predicted
        self.current: LayerPass | None = None
        self._last_demand: dict[int, frozenset[ExpertId]] = {}
        self._predicted: dict[int, frozenset[ExpertId]] = {}

    @property
    def shared(self) -> bool:
        """Whether one pool serves all layers."""
        return all(pool.layer is None for pool in self.pools)

    @property
    def keeps(self) -> bool:
        """Whether residents stay after the layer that used them."""
        return all(pool.eviction.keeps for pool in self._pools)

    @property
    def slots_by_pool(self) -> tuple[int, ...]:
        """Number of open slots of each pool."""
        return tuple(pool.capacity for pool in self._pools)

    def begin_sequences(self) -> None:
        """Notify all evictions that new sequences begin."""
        for pool in self._pools:
            pool.eviction.begin_sequences()

    def residents(self, layer: int) -> tuple[ExpertId, ...]:
        """All residents of this layer."""
        pools = self._of_layer[layer]
        return tuple(dict.fromkeys(e for p in pools for e in p.residents if e.layer == layer))

    def begin(self, layer: int) -> None:
        """Start a layer pass."""
        assert self.current is None, "the former layer pass was not ended"
        self.current = LayerPass(layer)
        for pool in self._of_layer[layer]:
            pool.eviction.begin_layer(layer)

    def missing(self, layer: int, indices: Iterable[int]) -> list[int]:
        """The experts that are neither resident nor already demanded in the present pass."""
        pools, ids = self._of_layer[layer], self._ids[layer]
        demanded = self.current.demanded if self.current is not None else {}
        experts = [(index, ids[index]) for index in indices]
        if len(pools) == 1:
            residents = pools[0].residents
            return [i for i, e in experts if e not in residents and e not in demanded]
        return [
            i
            for i, e in experts
            if e not in demanded and not any(e in pool.residents for pool in pools)
        ]

    def demand(
        self,
        indices: Iterable[int],
        wanted: DemandedBits = _EVERYTHING_HIGH,
        on_host: Collection[int] = (),
        *,
        more_to_come: bool = False,
    ) -> list[Step]:
        """The router of one micro-batch chose these experts (in routing order).

        wanted: their precisions; on_host: those that the host computes if they are missing;
        more_to_come: other micro-batches are still to be routed in this layer pass. Returns the new
        steps that have a slot or run on the host; experts without a slot are deferred to finish();
        skipped experts have no step.
        """
        current = self._current()
        by_bits, pools = self._by_layer[current.layer], self._of_layer[current.layer]
        demanded, ids = current.demanded, self._ids[current.layer]
        steps: list[Step] = []
        missing: list[ExpertId] = []
        for index in indices:
            expert = ids[index]
            if expert in demanded:
                continue
            demanded[expert] = None
            bits = wanted.get(index, self._high) if wanted else self._high
            for pool in pools:
                resident = pool.residents.get(expert)
                if resident is None:
                    continue
                hit = bits is None or resident.bits >= bits
                if not hit and bits is not None:
                    if by_bits[bits] is not pool:
                        continue  # precision too low, and the wanted one is in another pool
                    resident.bits = bits  # reloaded into its own slot
                pool.eviction.use(expert, high=bits == self._high)
                steps.append(Step(expert, resident.slot, resident.bits, hit))
                break
            else:
                missing.append(expert)
        # Other micro-batches may still demand experts of the last pass: do not evict those yet.
        spare = self._last_demand.get(current.layer, ()) if more_to_come else ()
        victims: _Victims = {}
        for expert in missing:
            bits = wanted.get(expert.expert, self._high)
            if bits is None:
                continue
            if expert.expert in on_host:
                steps.append(Step(expert, ON_HOST, bits, hit=False))
                continue
            slot = self._take_slot(by_bits[bits], expert, bits, victims, spare)
            if slot is None:
                current.deferred.append((expert, bits))
                continue
            steps.append(Step(expert, slot, bits, hit=False))
        current.steps.extend(steps)
        return steps

    def use_residents(self, layer: int, indices: Iterable[int]) -> None:
        """A whole layer pass of these experts, all of them residents at the wanted bits: what
        begin, demand, finish and end come to then."""
        assert self.current is None, "the former layer pass was not ended"
        pools, ids = self._of_layer[layer], self._ids[layer]
        experts = [ids[index] for index in indices]
        for pool in pools:
            pool.eviction.begin_layer(layer)
        for expert in experts:
            pool = next(pool for pool in pools if expert in pool.residents)
            pool.eviction.use(expert)
        self._last_demand[layer] = frozenset(experts)
        self._predicted.pop(layer, None)

    def finish(self) -> list[Step]:
        """All micro-batches are routed: place the deferred experts, first into slots of experts
        that were not demanded, then, in waves, into slots that earlier steps of this pass free."""
        current = self._current()
        steps: list[Step] = []
        given: dict[_Pool, int] = {}
        victims: _Victims = {}
        for expert, bits in current.deferred:
            pool = self._by_layer[current.layer][bits]
            slot = self._take_slot(pool, expert, bits, victims)
            if slot is not None:
                steps.append(Step(expert, slot, bits, hit=False))
            else:
                donor = self._donor(pool, given.get(pool, 0))
                given[pool] = given.get(pool, 0) + (donor is not None)
                left = self._served_elsewhere(pool) if donor is None else donor.expert
                self._release(pool, left)
                slot = pool.free.pop()
                pool.residents[expert] = _Resident(slot, bits)
                pool.eviction.insert(expert, high=bits == self._high)
                after = None if donor is None else donor.expert
                steps.append(Step(expert, slot, bits, hit=False, after=after))
            current.steps.append(steps[-1])
        current.deferred.clear()
        self._last_demand[current.layer] = frozenset(current.demanded)
        self._predicted.pop(current.layer, None)
        return steps

    def admit(self, steps: Iterable[Step]) -> list[Fetch]:
        """Give slots to experts of this layer pass that the host computes, as far as there are any
        that it does not use itself."""
        by_bits = self._by_layer[self._current().layer]
        victims: _Victims = {}
        fetches = []
        for step in steps:
            slot = self._take_slot(by_bits[step.bits], step.expert, step.bits, victims)
            if slot is not None:
                fetches.append(Fetch(step.expert, slot, step.bits))
        return fetches

    def end(self) -> LayerPass:
        """The layer pass is computed: unpin all its experts. Returns the ended pass."""
        ended, self.current = self._current(), None
        for pool in self._of_layer[ended.layer]:
            if not pool.eviction.keeps:
                for expert in [e for e in pool.residents if e.layer == ended.layer]:
                    self._release(pool, expert)
        return ended

    def prefetch(
        self,
        layer: int,
        indices: Iterable[int],
        wanted: DemandedBits = _EVERYTHING_HIGH,
        scores: Mapping[int, float] | None = None,
    ) -> list[Fetch]:
        """Prefetch predicted experts of a later layer, best first.

        Residents count as used, the others take unpinned slots as far as possible. wanted:
        precisions other than high; scores: of each expert if the predictor has them.
        """
        by_bits, pools = self._by_layer[layer], self._of_layer[layer]
        capacity = sum(pool.capacity for pool in pools)
        ids = self._ids[layer]
        experts = [ids[i] for i in dict.fromkeys(indices)][:capacity]
        if self._hold:
            self._predicted[layer] = frozenset(experts) | self._predicted.get(layer, frozenset())
        scored = scores if any(pool.eviction.expects for pool in pools) else None
        missing = []
        for expert in experts:
            for pool in pools:
                if expert in pool.residents:
                    pool.eviction.use(expert)
                    if scored:
                        pool.eviction.expect(expert, scored.get(expert.expert, 0.0))
                    break
            else:
                missing.append(expert)
        fetches: list[Fetch] = []
        victims: _Victims = {}
        for expert in missing:
            bits = wanted.get(expert.expert, self._high) or self._high
            pool = by_bits[bits]
            slot = self._take_slot(pool, expert, bits, victims, experts)
            if slot is None:
                continue
            if scored:
                pool.eviction.expect(expert, scored.get(expert.expert, 0.0))
            fetches.append(Fetch(expert, slot, bits))
        return fetches

    def open_elastic(self, fraction: float) -> list[int]:
        """Between two layer passes: make this fraction of the elastic slots available (0 to 1).
        Returns the closed slots; their experts are evicted by the usual rule."""
        assert self.current is None, "a layer pass is under way"
        taken: list[int] = []
        for pool in self._pools:
            wanted = pool.elastic - int(pool.elastic * fraction + 1e-9)  # closed ones
            while len(pool.closed) > wanted:
                pool.free.append(pool.closed.pop())
            while len(pool.closed) < wanted:
                if not pool.free:
                    allowed = self._least_wanted(list(pool.residents))
                    self._release(pool, pool.eviction.victim(allowed, _NOBODY))
                slot = pool.free.pop()
                pool.closed.append(slot)
                taken.append(slot)
        return taken

    def check_integrity(self) -> None:
        """Raise AssertionError if two experts share a slot or one got lost (for tests)."""
        seen: list[int] = []
        for pool in self._pools:
            seen.extend(pool.free)
            seen.extend(pool.closed)
            seen.extend(resident.slot for resident in pool.residents.values())
        assert sorted(seen) == list(range(self.slots)), f"slots lost or doubled: {sorted(seen)}"

    def _current(self) -> LayerPass:
        assert self.current is not None, "no layer pass was begun"
        return self.current

    def _donor(self, pool: _Pool, given: int) -> Step | None:
        """The step of this layer pass whose slot a later step takes over, after `given` donors;
        None if no step of this pool is left."""
        own = (step for step in self._current().steps if step.slot in pool.slots)
        return next(itertools.islice(own, given, None), None)

    def _served_elsewhere(self, pool: _Pool) -> ExpertId:
        """A demanded resident of this pool that the present layer pass uses from another pool."""
        used = {step.slot for step in self._current().steps}
        return next(e for e, resident in pool.residents.items() if resident.slot not in used)

    def _take_slot(
        self,
        pool: _Pool,
        expert: ExpertId,
        bits: Bits,
        victims: _Victims,
        spare: Collection[ExpertId] = (),
    ) -> int | None:
        """A free slot, or that of a victim; None if every resident is demanded or spared."""
        if not pool.free:
            allowed = victims.get(pool)
            if allowed is None:
                demanded = self.current.demanded.keys() if self.current is not None else ()
                kept = {*demanded, *spare}
                allowed = victims[pool] = [e for e in pool.residents if e not in kept]
            if not allowed:
                return None
            victim = pool.eviction.victim(self._least_wanted(allowed), expert)
            allowed.remove(victim)
            self._release(pool, victim)
        slot = pool.free.pop()
        pool.residents[expert] = _Resident(slot, bits)
        pool.eviction.insert(expert, high=bits == self._high)
        return slot

    def _least_wanted(self, allowed: list[ExpertId]) -> list[ExpertId]:
        """The candidates without those predicted for later layers, if those are held and others
        are left."""
        if not self._hold:
            return allowed
        held = frozenset().union(*self._predicted.values())
        return [e for e in allowed if e not in held] or allowed

    def _release(self, pool: _Pool, expert: ExpertId) -> None:
        pool.free.append(pool.residents.pop(expert).slot)
        pool.eviction.forget(expert)

"""The facade over cache decisions, slots and transfers: who wants an expert borrows it here.

One layer pass: begin, predict (any time), demand for each micro-batch, then steps() yields each
demanded expert with its views, valid until the next is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from engine.experts.slots import ExpertView, Slots
from engine.experts.transfer import Transfer, TransferEngine
from engine.policy.expert_cache import ExpertCache, Step
from engine.policy.order import Order
from engine.types import ExpertId, Phase


@dataclass
class CacheCounters:
    """Look-ups and predictions since the last reset, by phase."""

    hits: dict[Phase, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    misses: dict[Phase, int] = field(default_factory=lambda: {"prefill": 0, "decode": 0})
    predicted: int = 0
    predicted_demanded: int = 0
    prefetched: int = 0
    prefetched_in_time: int = 0
    prefetched_demanded: int = 0
    predicted_layer_demand: int = 0


class Residency:
    """Keeps the experts that the cache decided on in slots, and lends them.

    on_wait: called with True before blocking on the disk and with False after it, so that the
    caller can attribute the time.
    """

    def __init__(
        self,
        cache: ExpertCache,
        slots: Slots,
        transfers: TransferEngine,
        order: Order,
        on_wait: Callable[[bool], None],
    ) -> None:
        self._cache = cache
        self._slots = slots
        self._transfers = transfers
        self._order = order
        self._on_wait = on_wait
        self._in_slot: dict[int, Transfer] = {}
        self._steps: list[Step] = []
        self._layer = -1
        self._phase: Phase = "decode"
        self._predicted: dict[int, dict[int, None]] = {}
        self._prefetching: dict[int, list[Transfer]] = {}
        self.counters = CacheCounters()

    def begin(self, layer: int, phase: Phase) -> None:
        """Start the pass of one MoE layer."""
        self._cache.begin(layer)
        self._layer, self._phase = layer, phase
        self._steps = []

    def predict(self, layer: int, experts: Iterable[int]) -> None:
        """Hints for a later layer: fetch what is not resident, behind all demands."""
        wanted = list(experts)
        known = self._predicted.setdefault(layer, {})
        known.update(dict.fromkeys(wanted))
        for fetch in self._cache.prefetch(layer, wanted):
            transfer = self._transfers.submit(fetch.expert, fetch.slot, demanded=False)
            self._in_slot[fetch.slot] = transfer
            self._prefetching.setdefault(layer, []).append(transfer)
            self.counters.prefetched += 1

    def demand(self, experts: Iterable[int]) -> None:
        """One micro-batch's routing is known (experts in routing order): misses start at once."""
        steps = self._cache.demand(experts)
        self._settle_predictions(steps)
        for step in steps:
            if not step.hit:
                self._start(step)
        self._steps.extend(steps)

    def steps(self) -> Iterator[tuple[ExpertId, ExpertView]]:
        """Every demanded expert of this pass once, in the order of the policy. Ends the pass."""
        deferred = self._cache.finish()
        self._steps.extend(deferred)
        for late in deferred:
            if late.after is None:
                self._start(late)
        self._count()
        self._demote_stale()
        waiting = {step.after: step for step in deferred if step.after is not None}
        pending = list(self._steps)
        while pending:
            step = self._order.next(pending, self._is_ready)
            if step is None:
                self._wait([s for s in pending if s.after not in waiting])
                continue
            if not self._is_ready(step):
                self._wait([step])
            pending.remove(step)
            self._arrive(step)
            yield step.expert, self._slots.view(step.slot)
            self._slots.mark_used(step.slot)
            follower = waiting.pop(step.expert, None)
            if follower is not None:
                self._start(follower)
        self._cache.end()
        self._layer = -1

    def reset_counters(self) -> None:
        """Start counting anew."""
        self.counters = CacheCounters()

    def _start(self, step: Step) -> None:
        transfer = self._transfers.submit(step.expert, step.slot, demanded=True)
        self._in_slot[step.slot] = transfer

    def _is_ready(self, step: Step) -> bool:
        transfer = self._in_slot.get(step.slot)
        return transfer is not None and transfer.expert == step.expert and transfer.read

    def _wait(self, steps: list[Step]) -> None:
        transfers = [
            t
            for s in steps
            if (t := self._in_slot.get(s.slot)) is not None and t.expert == s.expert
        ]
        assert transfers, "nothing to wait for: a step lost its transfer"
        self._on_wait(True)
        try:
            self._transfers.wait(transfers)
        finally:
            self._on_wait(False)

    def _arrive(self, step: Step) -> None:
        for event in self._in_slot[step.slot].events:
            self._slots.device.wait(event)

    def _settle_predictions(self, steps: list[Step]) -> None:
        """Raise the transfers that turned out demanded, and note which came in time."""
        prefetching = self._prefetching.get(self._layer, [])
        for step in steps:
            if not step.hit:
                continue
            transfer = self._in_slot[step.slot]
            in_time = transfer.read
            if not in_time:
                self._transfers.promote(transfer)
            if transfer in prefetching:
                self.counters.prefetched_demanded += 1
                self.counters.prefetched_in_time += in_time

    def _demote_stale(self) -> None:
        demanded = {step.expert for step in self._steps}
        for transfer in self._prefetching.pop(self._layer, []):
            if transfer.expert not in demanded and not transfer.read:
                self._transfers.demote(transfer)

    def _count(self) -> None:
        hits = sum(step.hit for step in self._steps)
        self.counters.hits[self._phase] += hits
        self.counters.misses[self._phase] += len(self._steps) - hits
        predicted = self._predicted.pop(self._layer, None)
        if predicted is not None:
            demanded = {step.expert.expert for step in self._steps}
            self.counters.predicted += len(predicted)
            self.counters.predicted_demanded += len(demanded & predicted.keys())
            self.counters.predicted_layer_demand += len(demanded)

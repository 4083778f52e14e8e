"""The facade over policy, slots and transfers, from which compute borrows experts.

It passes the events of a forward pass to the policy and executes its decisions. One layer pass:
gate_entered (any number), routed for each micro-batch, layer_routed, then device_waves() yields
the experts that the device computes, as they are ready; their records stay until the next wave.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from engine.device.base import Device
from engine.experts.ready_records import ReadyRecords
from engine.experts.slots import ExpertView, Slots
from engine.experts.transfer import Transfer, TransferEngine
from engine.policy.compute_order import Order
from engine.policy.events import GateView, PassStart, Routing
from engine.policy.expert_policy import ExpertPolicy, PolicyCounters
from engine.policy.steps import ON_HOST, Fetch, LayerPass, Step


@dataclass
class ArrivalCounters:
    """Counts prefetches that turned out demanded, and those that had arrived by then."""

    demanded: int = 0
    in_time: int = 0


class Residency:
    """Keeps the experts that the policy selected in slots and gives compute access to them.

    on_wait: called with True before blocking on a transfer and with False after it, so that the
    caller can attribute the time; ready: kept up to date if given, for a policy that only follows
    demand.
    """

    def __init__(
        self,
        policy: ExpertPolicy,
        slots: Slots,
        transfers: TransferEngine,
        order: Order,
        on_wait: Callable[[bool], None],
        ready: ReadyRecords | None = None,
    ) -> None:
        self.policy = policy
        self.ready = ready
        self._slots = slots
        self._transfers = transfers
        self._order = order
        self._on_wait = on_wait
        self._in_slot: dict[int, Transfer] = {}
        self._prefetching: dict[int, list[Transfer]] = {}
        self.arrivals = ArrivalCounters()

    @property
    def counters(self) -> PolicyCounters:
        """Look-ups and predictions since the last reset."""
        return self.policy.counters

    @property
    def device(self) -> Device:
        """The device whose memory holds the slots."""
        return self._slots.device

    def begin_pass(self, start: PassStart) -> None:
        """Notify the policy that a forward pass begins."""
        self._fetch(self.policy.begin_pass(start))

    def gate_entered(self, layer: int, micro_batch: int, view: GateView) -> None:
        """A router is about to run: prefetches for later layers queue after all demanded loads."""
        self._fetch(self.policy.gate_entered(layer, micro_batch, view))

    def routed(self, layer: int, micro_batch: int, routing: Routing) -> None:
        """The routing of one micro-batch is known: start loading its misses."""
        steps = self.policy.routed(layer, micro_batch, routing)
        self._settle_predictions(layer, steps)
        self._start([step for step in steps if not step.hit and step.slot != ON_HOST])

    def layer_routed(self) -> None:
        """All micro-batches are routed: start the remaining loads and the fetches of the policy."""
        deferred, fetches = self.policy.layer_routed()
        self._start([late for late in deferred if late.after is None])
        self._demote_stale()
        self._fetch(fetches)

    def computes_all(self, places: int) -> bool:
        """Whether the steps of this layer pass compute all of these (token, choice) pairs: none was
        skipped, none means no expert."""
        tokens = self.policy.tokens
        computed = {step.expert.expert for step in self._pass().steps}
        return sum([tokens.get(expert, 0) for expert in computed]) == places

    def host_steps(self) -> Sequence[Step]:
        """The steps that the host computes in this layer pass."""
        return [step for step in self._pass().steps if step.slot == ON_HOST]

    def device_waves(self, most: int | None = None) -> Iterator[list[Step]]:
        """Yield every expert that the device computes once, those that are ready together, in the
        order of the policy. Ends the pass.

        most: the last of so many waves waits for all that is under way; only experts that take over
        a slot of an earlier one come after it.
        """
        steps = self._pass().steps
        waiting = {step.after: step for step in steps if step.after is not None}
        pending = [s for s in steps if s.slot != ON_HOST and s.after is None]
        waves = 0
        while pending:
            if most is not None and waves + 1 >= most:
                self._wait_for_all(pending)
            wave = self._take_ready(pending)
            if not wave:
                continue
            waves += 1
            yield wave
            self._slots.mark_used([step.slot for step in wave])
            if waiting:
                freed = [step.expert for step in wave if step.expert in waiting]
                followers = [waiting.pop(expert) for expert in freed]
                self._start(followers)
                pending.extend(followers)
        self.policy.computed()

    def computed_ready(self, layer: int, routing: Routing) -> None:
        """A whole layer pass whose demanded experts were all `ready` and are computed."""
        self.policy.followed(layer, routing)

    def view(self, step: Step) -> ExpertView:
        """Typed views of the record of a step of the present wave."""
        return self._slots.view(step.slot, step.bits)

    def addresses(self, wave: Sequence[Step]) -> dict[int, int]:
        """The addresses of the records of steps of the present wave, by expert."""
        experts = [step.expert.expert for step in wave]
        addresses = self._slots.addresses([step.slot for step in wave])
        return dict(zip(experts, addresses, strict=True))

    def _take_ready(self, pending: list[Step]) -> list[Step]:
        """Move the steps that come next and are ready out of `pending`; waits for the first."""
        wave: list[Step] = []
        if not self._late(pending):  # then their order is nothing to decide
            wave[:] = pending
            pending.clear()
        while pending:
            step = self._order.next(pending, self._is_ready, self.policy.tokens)
            if step is None or not self._is_ready(step):
                if wave:
                    break
                self._wait(pending if step is None else [step])
                if step is None:
                    break
            pending.remove(step)
            wave.append(step)
        self._arrive(wave)
        return wave

    def end_pass(self) -> None:
        """Notify the policy that the forward pass is done."""
        self.policy.end_pass()

    def open_elastic(self, fraction: float) -> None:
        """Between two passes: make this fraction of the elastic slots available (0 to 1). The
        memory of the other elastic slots is returned at once."""
        self._transfers.drain()  # a transfer may target a slot that closes
        for slot in self.policy.cache.open_elastic(fraction):
            self._leave(slot)
            self._in_slot.pop(slot, None)
            self._slots.give_back(slot)

    def reset_counters(self) -> None:
        """Reset all counters."""
        self.policy.reset_counters()
        self.arrivals = ArrivalCounters()

    def _pass(self) -> LayerPass:
        current = self.policy.cache.current
        assert current is not None, "no layer pass was begun"
        return current

    def _fetch(self, fetches: Sequence[Fetch]) -> None:
        if not fetches:
            return
        for transfer in self._load(fetches, demanded=False):
            self._prefetching.setdefault(transfer.expert.layer, []).append(transfer)

    def _start(self, steps: Sequence[Step]) -> None:
        if steps:
            self._load(steps, demanded=True)

    def _load(self, wanted: Sequence[Step] | Sequence[Fetch], *, demanded: bool) -> list[Transfer]:
        records = [(one.expert, one.slot, one.bits) for one in wanted]
        for _, slot, _ in records:
            self._leave(slot)
        transfers = self._transfers.submit_all(records, demanded=demanded)
        for transfer in transfers:
            self._in_slot[transfer.slot] = transfer
        return transfers

    def _is_ready(self, step: Step) -> bool:
        return not self._late([step])

    def _late(self, steps: Sequence[Step]) -> list[Step]:
        """The steps whose records have not arrived."""
        held = self._in_slot
        return [
            step
            for step in steps
            if (own := held.get(step.slot)) is None or own.expert != step.expert or not own.read
        ]

    def _wait_for_all(self, steps: Sequence[Step]) -> None:
        while late := self._late(steps):
            self._wait(late)

    def _wait(self, steps: Sequence[Step]) -> None:
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

    def _leave(self, slot: int) -> None:
        """What the slot holds is about to be overwritten."""
        if self.ready is not None and (former := self._in_slot.get(slot)) is not None:
            self.ready.drop(former.expert)

    def _arrive(self, wave: Sequence[Step]) -> None:
        """Later compute comes after the copies of these steps."""
        if self.ready is not None:
            for step in wave:
                if not self.ready.has(step.expert):
                    self.ready.add(step.expert, self._slots.address(step.slot))
        if self._slots.device.is_host_memory:
            return  # a transfer that was read is there
        for step in wave:
            events = self._in_slot[step.slot].events
            while events:  # once an arrival: what is queued later comes after it too
                self._slots.device.wait(events.pop())

    def _settle_predictions(self, layer: int, steps: Sequence[Step]) -> None:
        """Promote the transfers that turned out demanded, and count those that arrived in time."""
        prefetching = self._prefetching.get(layer, [])
        for step in steps:
            if not step.hit:
                continue
            transfer = self._in_slot[step.slot]
            in_time = transfer.read
            if not in_time:
                self._transfers.promote(transfer)
            if transfer in prefetching:
                self.arrivals.demanded += 1
                self.arrivals.in_time += in_time

    def _demote_stale(self) -> None:
        """Move predicted transfers for this layer that were not selected behind all others."""
        current = self._pass()
        prefetching = self._prefetching.pop(current.layer, [])
        if not prefetching:
            return
        demanded = {step.expert for step in current.steps}
        for transfer in prefetching:
            if transfer.expert not in demanded and not transfer.read:
                self._transfers.demote(transfer)

"""Simulated transfers: the engine's queues and chunks over a record source, on a simulated clock.

Mirrors engine.experts.transfer: threads take one chunk of the queue's head at a time, at most
`in_flight` at once; reassigning a slot cancels the transfer that is queued for it. What a host tier
does not hold, a thread reads from the disk before it crosses the link.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.facts.timings import RecordSource
from engine.policy.transfer_queue import TransferQueue
from engine.replay.tier import PartialTier
from engine.types import ExpertId


@dataclass(eq=False)
class SimulatedTransfer:
    """One record in transfer. tier: None if all records come from the source; ready_at: when its
    last chunk arrived, None before."""

    expert: ExpertId
    source: RecordSource
    demanded: bool
    chunks: int
    chunk_bytes: float
    tier: PartialTier | None = None
    issued: int = 0
    arrived: int = 0
    cancelled: bool = False
    ready_at: float | None = None


@dataclass
class _Moving:
    """disk_bytes: that the disk still has to read before the rest moves."""

    transfer: SimulatedTransfer
    rest_bytes: float
    disk_bytes: float = 0.0


class SimulatedTransfers:
    """Transfers that advance lazily, only when a later time is requested.

    workers: number of chunks that can be in flight; records are cut into chunks of chunk_bytes.
    """

    def __init__(
        self,
        queue: TransferQueue[SimulatedTransfer],
        *,
        workers: int,
        chunk_bytes: int,
    ) -> None:
        self._queue = queue
        self._workers = workers
        self._chunk_bytes = max(4096, chunk_bytes // 4096 * 4096)
        self._moving: list[_Moving] = []
        self._by_slot: dict[int, SimulatedTransfer] = {}
        self._now = 0.0
        self.moved_bytes = 0.0
        self.busy_s = 0.0

    def submit(
        self,
        now: float,
        expert: ExpertId,
        slot: int,
        size_bytes: int,
        source: RecordSource,
        *,
        demanded: bool,
        tier: PartialTier | None = None,
    ) -> SimulatedTransfer:
        """Queue a record for a slot at this time; source: its record source; tier: the one behind
        a link that does not hold all records."""
        self.advance(now)
        former = self._by_slot.get(slot)
        if former is not None and former.ready_at is None:
            self._queue.remove(former)
            former.cancelled = True
        count = source.chunks(size_bytes, self._chunk_bytes)
        transfer = SimulatedTransfer(expert, source, demanded, count, size_bytes / count, tier)
        self._by_slot[slot] = transfer
        self._queue.push(transfer, urgent=demanded)
        return transfer

    def promote(self, now: float, transfer: SimulatedTransfer) -> None:
        """Promote a predicted transfer that is now demanded."""
        self.advance(now)
        transfer.demanded = True
        self._queue.promote(transfer)

    def demote(self, now: float, transfer: SimulatedTransfer) -> None:
        """Demote a predicted transfer that is stale."""
        self.advance(now)
        self._queue.demote(transfer)

    def is_ready(self, now: float, transfer: SimulatedTransfer) -> bool:
        """Whether the transfer has arrived at this time."""
        self.advance(now)
        return transfer.ready_at is not None

    def wait(self, now: float, transfers: Sequence[SimulatedTransfer]) -> float:
        """The time at which the first of the transfers arrives."""
        self.advance(now)
        self._run(lambda: any(t.ready_at is not None for t in transfers), None)
        assert any(t.ready_at is not None for t in transfers), "waiting for what was cancelled"
        return max(now, self._now)

    def moving_fraction(self, since: float, until: float) -> float:
        """Fraction of a span in which chunks move, if nothing else is submitted (1 or less)."""
        if until <= since:
            return 0.0
        self.advance(since)
        before = self.busy_s
        self.advance(until)
        return min(1.0, (self.busy_s - before) / (until - since))

    def advance(self, until: float) -> None:
        """Simulate all events up to this time."""
        if until > self._now:
            self._run(lambda: False, until)
            self._now = max(self._now, until)

    def _run(self, done: Callable[[], bool], until: float | None) -> None:
        while not done():
            self._fill()
            if not self._moving:
                return
            speeds = self._speeds()
            spans = [
                (m.disk_bytes or m.rest_bytes) / s
                for m, s in zip(self._moving, speeds, strict=True)
                if s > 0
            ]
            span = min(spans)
            if until is not None and self._now + span > until:
                span = until - self._now
                self._progress(span, speeds)
                self._now = until
                return
            self._progress(span, speeds)
            self._now += span
            self._arrive()

    def _speeds(self) -> list[float]:
        """Of each chunk: those that share their source divide it, of the others the first moves."""
        sources = [
            moving.transfer.tier.disk
            if moving.disk_bytes and moving.transfer.tier is not None
            else moving.transfer.source
            for moving in self._moving
        ]
        sharing = sum(source.sharing == "shared" for source in sources)
        speeds, is_taken = [], False
        for source in sources:
            if source.sharing == "shared":
                speeds.append(source.rate(sharing) / sharing)
            else:
                speeds.append(0.0 if is_taken else source.rate(1))
                is_taken = True
        return speeds

    def _progress(self, span: float, speeds: Sequence[float]) -> None:
        self.busy_s += span
        for moving, speed in zip(self._moving, speeds, strict=True):
            if moving.disk_bytes:
                left = moving.disk_bytes - span * speed
                moving.disk_bytes = left if left > 1e-6 else 0.0
            else:
                moving.rest_bytes -= span * speed

    def _fill(self) -> None:
        while len(self._moving) < self._workers:
            transfer = self._queue.head()
            if transfer is None:
                return
            transfer.issued += 1
            if transfer.issued == transfer.chunks:
                self._queue.remove(transfer)
            source = transfer.source
            cost = transfer.chunk_bytes + source.chunk_s * source.rate(1)
            moving = _Moving(transfer, cost)
            if transfer.tier is not None and not transfer.tier.borrow(transfer.expert):
                moving.disk_bytes = transfer.tier.read_bytes
            self._moving.append(moving)

    def _arrive(self) -> None:
        for moving in [m for m in self._moving if not m.disk_bytes and m.rest_bytes <= 1e-6]:
            self._moving.remove(moving)
            transfer = moving.transfer
            transfer.arrived += 1
            self.moved_bytes += transfer.chunk_bytes
            if transfer.arrived == transfer.chunks and not transfer.cancelled:
                transfer.ready_at = self._now

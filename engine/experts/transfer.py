"""Moves records into slots: each I/O thread takes one chunk at a time from the head of the queue.

Mechanism only: the residency decides which transfer is urgent or stale. A transfer into a slot
whose former transfer is still queued cancels that one first and waits for a chunk that is being
read. On a device that the host cannot write, a chunk is read into pinned staging and copied.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from engine.device.base import Event
from engine.device.pages import bytes_view
from engine.errors import EngineError
from engine.experts.slots import Slots
from engine.experts.tiers.direct_io import Extent
from engine.experts.tiers.disk import ExpertStore
from engine.experts.tiers.host import HostTier
from engine.policy.transfer_queue import TransferQueue
from engine.types import Bits, ExpertId

Source = ExpertStore | HostTier


@dataclass(eq=False, slots=True)
class Transfer:
    """The transfer of one record into one slot. The engine's lock guards the fields."""

    expert: ExpertId
    slot: int
    bits: Bits
    demanded: bool
    chunks: Sequence[Extent]
    issued: int = 0
    running: int = 0
    cancelled: bool = False
    read: bool = False
    error: Exception | None = None
    events: list[Event] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether no thread will touch the slot any more."""
        return self.running == 0 and (self.cancelled or self.issued == len(self.chunks))


@dataclass
class TransferCounters:
    """Totals since the last reset."""

    demanded_bytes: int = 0
    predicted_bytes: int = 0

    @property
    def moved_bytes(self) -> int:
        """All bytes moved into slots."""
        return self.demanded_bytes + self.predicted_bytes


class TransferEngine:
    """Executes transfers with `threads` I/O threads, at most `in_flight` chunks at a time."""

    def __init__(
        self,
        slots: Slots,
        sources: Mapping[Bits, Source],
        queue: TransferQueue[Transfer],
        *,
        threads: int,
        chunk_bytes: int,
        in_flight: int,
    ) -> None:
        self._slots = slots
        self.sources = dict(sources)
        self._queue = queue
        # chunk bounds on O_DIRECT pages, so that only record ends are unaligned
        self._chunk_bytes = max(4096, chunk_bytes // 4096 * 4096)
        self._in_flight = in_flight
        self._lock = threading.Lock()
        self._queued = threading.Condition(self._lock)  # the I/O threads wait for chunks
        # all other threads wait for chunks to be moved
        self._moved = threading.Condition(self._lock)
        self._by_slot: dict[int, Transfer] = {}
        self._running = 0
        self._closed = False
        self._broken: Exception | None = None
        self.counters = TransferCounters()
        self._threads = [
            threading.Thread(target=self._work, name=f"expert-io-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, expert: ExpertId, slot: int, bits: Bits, *, demanded: bool) -> Transfer:
        """Queue a record for a slot. Returns at once unless the slot is being written."""
        return self.submit_all([(expert, slot, bits)], demanded=demanded)[0]

    def submit_all(
        self, records: Sequence[tuple[ExpertId, int, Bits]], *, demanded: bool
    ) -> list[Transfer]:
        """Queue several records, (expert, slot, bits) each, waking the threads once."""
        transfers = [
            Transfer(
                expert, slot, bits, demanded, self.sources[bits].chunks(expert, self._chunk_bytes)
            )
            for expert, slot, bits in records
        ]
        with self._lock:
            for transfer in transfers:
                former = self._by_slot.get(transfer.slot)
                if former is not None and not former.finished:
                    self._cancel(former)
                self._by_slot[transfer.slot] = transfer
                self._queue.push(transfer, urgent=demanded)
            self._queued.notify()  # each thread wakes the next: waking costs the caller 20 us
        return transfers

    def promote(self, transfer: Transfer) -> None:
        """Promote a predicted transfer whose record is now demanded."""
        with self._lock:
            transfer.demanded = True
            self._queue.promote(transfer)

    def demote(self, transfer: Transfer) -> None:
        """Demote a predicted transfer whose record was not selected."""
        with self._lock:
            self._queue.demote(transfer)

    def wait(self, transfers: list[Transfer]) -> None:
        """Block until one of the transfers is read. Raises the error that stopped it."""
        with self._lock:
            while not any(t.read or t.error for t in transfers):
                if self._broken is not None:
                    raise self._broken
                if self._closed:
                    raise EngineError("the transfer engine was closed while it was waited for")
                self._moved.wait(timeout=1.0)
        for transfer in transfers:
            if transfer.error is not None:
                raise transfer.error

    def drain(self) -> None:
        """Block until the queue is empty and no chunk is running."""
        with self._lock:
            while (len(self._queue) or self._running) and self._broken is None:
                self._moved.wait(timeout=1.0)

    def close(self) -> None:
        """Stop the threads; queued transfers are dropped."""
        with self._lock:
            self._closed = True
            self._queued.notify_all()
            self._moved.notify_all()
        for thread in self._threads:
            thread.join()
        self._by_slot.clear()

    def _cancel(self, transfer: Transfer) -> None:
        """Stop a transfer; afterwards no thread touches its slot. Requires the lock."""
        self._queue.remove(transfer)
        transfer.cancelled = True
        while transfer.running:
            self._moved.wait()

    def _work(self) -> None:
        staging = None
        try:
            scratch = self._slots.device.allocate_staging(
                max(source.scratch_bytes() for source in self.sources.values())
            )
            if self._slots.host_bytes_of(0, 0, 1) is None:
                staging = self._slots.device.allocate_staging(self._slots.slot_bytes)
        except Exception as caught:  # noqa: BLE001 (the boundary of a thread: the waiter raises it)
            with self._lock:
                self._broken = caught
                self._moved.notify_all()
            return
        while (job := self._take()) is not None:
            transfer, chunk = job
            error: Exception | None = None
            event: Event | None = None
            try:
                event = self._move(transfer, chunk, scratch, staging)
            except Exception as caught:  # noqa: BLE001 (the boundary of a thread)
                error = caught
            self._complete(transfer, chunk, event, error)

    def _take(self) -> tuple[Transfer, Extent] | None:
        with self._lock:
            while not self._closed:
                transfer = self._queue.head() if self._running < self._in_flight else None
                if transfer is not None:
                    chunk = transfer.chunks[transfer.issued]
                    transfer.issued += 1
                    transfer.running += 1
                    self._running += 1
                    if transfer.issued == len(transfer.chunks):
                        self._queue.remove(transfer)
                    if len(self._queue) and self._running < self._in_flight:
                        self._queued.notify()
                    return transfer, chunk
                self._queued.wait()
        return None

    def _move(
        self, transfer: Transfer, chunk: Extent, scratch: torch.Tensor, staging: torch.Tensor | None
    ) -> Event | None:
        source = self.sources[transfer.bits]
        if isinstance(source, HostTier):
            with source.borrow(transfer.expert, bytes_view(scratch)) as record:
                return self._copy(transfer, chunk, record)
        target = self._slots.host_bytes_of(transfer.slot, chunk.record_offset, chunk.size_bytes)
        if target is not None:
            source.read(transfer.expert, chunk, target, bytes_view(scratch))
            return None
        assert staging is not None
        piece = staging[: chunk.size_bytes]
        source.read(transfer.expert, chunk, bytes_view(piece), bytes_view(scratch))
        return self._copy(transfer, chunk, piece)

    def _copy(self, transfer: Transfer, chunk: Extent, piece: torch.Tensor) -> Event:
        """Copy host memory into the slot; finished with `piece` on return."""
        target = self._slots.bytes_of(transfer.slot, chunk.record_offset, chunk.size_bytes)
        event = self._slots.device.copy(target, piece, self._slots.free_event(transfer.slot))
        event.synchronize()  # the piece is reused, or may leave the host tier, right after
        return event

    def _complete(
        self,
        transfer: Transfer,
        chunk: Extent,
        event: Event | None,
        error: Exception | None,
    ) -> None:
        with self._lock:
            transfer.running -= 1
            self._running -= 1
            if transfer.demanded:
                self.counters.demanded_bytes += chunk.size_bytes
            else:
                self.counters.predicted_bytes += chunk.size_bytes
            if event is not None:
                transfer.events.append(event)
            if error is not None:
                transfer.error = error
                self._queue.remove(transfer)
                transfer.cancelled = True
            elif transfer.finished and not transfer.cancelled:
                transfer.read = True
            if error is not None or transfer.finished:  # nobody waits for a single chunk
                self._moved.notify_all()

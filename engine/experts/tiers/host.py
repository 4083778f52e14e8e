"""The host tier: records kept in one pinned slab between the disk and a device.

It is filled once; where not all records fit, the least recently used one makes room. It changes
where bytes come from, never which are requested. On a device that is host memory itself it would
hold every record twice, so there is none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.device.base import Device
from engine.device.pages import allocate_pages, bytes_view, map_pages
from engine.errors import EngineError
from engine.experts.encoding.codec import RecordFormat
from engine.experts.tiers.direct_io import Extent
from engine.experts.tiers.disk import ExpertStore
from engine.types import ExpertId


@dataclass
class _Entry:
    slot: int
    whole: bool = False
    borrowed: int = 0


class HostTier:
    """Holds `count` records of a store in host memory.

    size_bytes: capacity for records; at least one must fit (ValueError). Raises MemoryError if the
    system refuses the memory.
    """

    def __init__(self, store: ExpertStore, device: Device, size_bytes: int) -> None:
        self._store = store
        self.count = min(size_bytes // store.record.size_bytes, len(store.experts))
        if self.count < 1:
            raise ValueError("the host tier is smaller than one record")
        self._device = device
        self._slab = map_pages(self.count * store.record.size_bytes)
        self.pinned_bytes = device.pin(self._slab)
        self._view = bytes_view(self._slab)
        self._free = list(range(self.count))
        self._entries: OrderedDict[ExpertId, _Entry] = OrderedDict()
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    @property
    def record(self) -> RecordFormat:
        """The format of the records."""
        return self._store.record

    @property
    def experts(self) -> Sequence[ExpertId]:
        """All experts of the underlying store, in order."""
        return self._store.experts

    @property
    def files(self) -> Sequence[Path]:
        """The files of the underlying store."""
        return self._store.files

    @property
    def holds_all(self) -> bool:
        """Whether every record fits."""
        return self.count == len(self._store.experts)

    @property
    def size_bytes(self) -> int:
        """Bytes of the slab."""
        return self.count * self.record.size_bytes

    def held(self) -> list[ExpertId]:
        """The experts whose records are here now, those used longest ago first."""
        with self._lock:
            return [expert for expert, entry in self._entries.items() if entry.whole]

    def attach(self, store: ExpertStore) -> None:
        """Go on with the same records, opened anew. Nothing may be borrowed."""
        self._store = store

    def fill(self, threads: int, read: Callable[[int], None]) -> None:
        """Read records that are not held, as many as fit, from all layers alike.

        read: called with the bytes of each, by several threads.
        """
        wanted = sorted(self._store.experts, key=lambda one: (one.expert, one.layer))
        missing = [e for e in wanted if e not in self._entries][: len(self._free)]

        def work(number: int) -> None:
            scratch = bytes_view(allocate_pages(self.scratch_bytes()))
            for expert in missing[number::threads]:
                with self.borrow(expert, scratch):
                    read(self.record.size_bytes)

        if missing:
            with ThreadPoolExecutor(threads, thread_name_prefix="expert-fill") as pool:
                list(pool.map(work, range(threads)))

    @contextmanager
    def borrow(self, expert: ExpertId, scratch: memoryview) -> Iterator[torch.Tensor]:
        """The record in host memory, uint8 [record bytes], which stays while it is borrowed.

        scratch: of scratch_bytes. Reads the record from the disk if it is missing. Raises
        EngineError if more are borrowed at once than fit.
        """
        with self._lock:
            entry = self._entries.get(expert) or self._admit(expert)
            entry.borrowed += 1
            self._entries.move_to_end(expert)
            if entry.whole:
                self.hits += 1
            else:
                self.misses += 1
        try:
            first = entry.slot * self.record.size_bytes
            if not entry.whole:  # two threads may read it: both write the same bytes
                for piece in self._store.chunks(expert, 1 << 62):
                    start = first + piece.record_offset
                    target = self._view[start : start + piece.size_bytes]
                    self._store.read(expert, piece, target, scratch)
                entry.whole = True
            yield self._slab[first : first + self.record.size_bytes]
        finally:
            with self._lock:
                entry.borrowed -= 1

    def scratch_bytes(self) -> int:
        """Bytes of scratch that one reading thread needs."""
        return self._store.scratch_bytes()

    def chunks(self, expert: ExpertId, chunk_bytes: int) -> Sequence[Extent]:
        """One piece: a record crosses the link in one copy."""
        return (Extent(0, 0, 0, self.record.size_bytes),)

    def close(self) -> None:
        """Unpin the slab; its memory is freed with the last view of it."""
        self._entries.clear()
        self._device.unpin(self._slab)

    def _admit(self, expert: ExpertId) -> _Entry:
        """Give a slot to a record; the oldest one that is not borrowed leaves if none is free.
        Requires the lock."""
        if not self._free:
            oldest = next((e for e, entry in self._entries.items() if not entry.borrowed), None)
            if oldest is None:
                raise EngineError("every record of the host tier is in use: raise host.bytes")
            self._free.append(self._entries.pop(oldest).slot)
        entry = self._entries[expert] = _Entry(self._free.pop())
        return entry

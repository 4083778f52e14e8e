"""The host tier: records kept in one pinned slab between the disk and a device.

Records read from the disk fill it; the least recently used one is evicted first. It changes where
bytes come from, never which are requested. On a device that is host memory itself it would hold
every record twice, so the engine leaves it out there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from engine.device.base import Device
from engine.device.pages import allocate_pages, bytes_view
from engine.errors import EngineError
from engine.experts.encoding.codec import RecordFormat
from engine.experts.tiers.direct_io import Extent
from engine.experts.tiers.disk import ExpertStore
from engine.types import ExpertId


@dataclass
class _Entry:
    slot: int
    size_bytes: int
    present: dict[int, int] = field(default_factory=dict)  # bytes by offset in the record
    borrowed: int = 0

    @property
    def whole(self) -> bool:
        return sum(self.present.values()) == self.size_bytes


class HostTier:
    """The host tier, with the interface of ExpertStore; holds `count` records in host memory.

    size_bytes: capacity for records; at least one must fit (ValueError).
    """

    def __init__(self, store: ExpertStore, device: Device, size_bytes: int) -> None:
        self._store = store
        self.count = min(size_bytes // store.record.size_bytes, len(store.experts))
        if self.count < 1:
            raise ValueError("the host tier is smaller than one record")
        self._slab = device.allocate_staging(self.count * store.record.size_bytes)
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

    def fill(self) -> None:
        """Read as many records as fit, in order."""
        scratch = bytes_view(allocate_pages(self.scratch_bytes()))
        for expert in self._store.experts[: self.count]:
            with self.borrow(expert, scratch):
                pass

    @contextmanager
    def borrow(self, expert: ExpertId, scratch: memoryview) -> Iterator[torch.Tensor]:
        """The whole record in host memory, uint8 [record bytes], which stays while it is borrowed.

        scratch: of scratch_bytes. Reads the record from the disk if it is missing.
        """
        with self._lock:
            entry = self._entries.get(expert) or self._admit(expert)
            entry.borrowed += 1
        try:
            self._complete(expert, entry, scratch)
            first = entry.slot * self.record.size_bytes
            yield self._slab[first : first + self.record.size_bytes]
        finally:
            with self._lock:
                entry.borrowed -= 1

    def borrow_piece(self, expert: ExpertId, piece: Extent) -> torch.Tensor | None:
        """A piece of a completely held record, as the slab's own memory; None if it is not held.

        Release it with `give_back`.
        """
        with self._lock:
            entry = self._entries.get(expert)
            if entry is None or not entry.whole:
                return None
            entry.borrowed += 1
            self._entries.move_to_end(expert)
            self.hits += 1
            first = entry.slot * self.record.size_bytes + piece.record_offset
            return self._slab[first : first + piece.size_bytes]

    def give_back(self, expert: ExpertId) -> None:
        """Release a borrowed piece."""
        with self._lock:
            self._entries[expert].borrowed -= 1

    def _complete(self, expert: ExpertId, entry: _Entry, scratch: memoryview) -> None:
        if entry.whole:
            return
        for piece in self._store.chunks(expert, 1 << 62):
            self._store.read(expert, piece, self._range(entry.slot, piece), scratch)
        with self._lock:
            entry.present = {0: entry.size_bytes}

    def scratch_bytes(self) -> int:
        """Bytes of scratch that one reading thread needs."""
        return self._store.scratch_bytes()

    def chunks(self, expert: ExpertId, chunk_bytes: int) -> Sequence[Extent]:
        """The record's pieces, as the disk store cuts them."""
        return self._store.chunks(expert, chunk_bytes)

    def read(
        self, expert: ExpertId, piece: Extent, target: memoryview, scratch: memoryview
    ) -> None:
        """Read from the slab if the whole record is there, else from the disk, and keep it."""
        with self._lock:
            entry = self._entries.get(expert)
            if entry is not None and entry.whole:
                self._entries.move_to_end(expert)
                self.hits += 1
                _copy(target, self._range(entry.slot, piece))
                return
        self._store.read(expert, piece, target, scratch)
        with self._lock:
            self.misses += 1
            entry = self._entries.get(expert) or self._admit(expert)
            if not entry.whole:  # pieces of one record always have the same bounds
                _copy(self._range(entry.slot, piece), target)
                entry.present[piece.record_offset] = piece.size_bytes

    def _admit(self, expert: ExpertId) -> _Entry:
        """Give a slot to a record that is being read; evicts the oldest record that is not
        borrowed, complete or not. Requires the lock."""
        if not self._free:
            oldest = next((e for e, entry in self._entries.items() if not entry.borrowed), None)
            if oldest is None:
                raise EngineError("every record of the host tier is in use: raise host.bytes")
            self._free.append(self._entries.pop(oldest).slot)
        size = sum(piece.size_bytes for piece in self._store.chunks(expert, 1 << 62))
        entry = _Entry(self._free.pop(), size)
        self._entries[expert] = entry
        return entry

    def _range(self, slot: int, piece: Extent) -> memoryview:
        first = slot * self.record.size_bytes + piece.record_offset
        return self._view[first : first + piece.size_bytes]


def _copy(target: memoryview, source: memoryview) -> None:
    np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))

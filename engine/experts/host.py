"""The host tier: records kept in one pinned slab between the disk and a device.

Filled by what is read from the disk, least recently used out first. It changes where bytes come
from, never which are asked for. On a device that is host memory itself it would hold every record
twice, so the engine leaves it out there.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from engine.device.base import Device
from engine.device.pages import bytes_view
from engine.experts.codec import RecordFormat
from engine.experts.disk import Extent
from engine.experts.store import ExpertStore
from engine.types import ExpertId


@dataclass
class _Entry:
    slot: int
    size_bytes: int
    present: dict[int, int] = field(default_factory=dict)  # bytes by offset in the record

    @property
    def whole(self) -> bool:
        return sum(self.present.values()) == self.size_bytes


class HostTier:
    """Same interface as ExpertStore, with `count` records held in host memory.

    size_bytes: room for records; at least one must fit (ValueError).
    """

    def __init__(self, store: ExpertStore, device: Device, size_bytes: int) -> None:
        self._store = store
        self.count = min(size_bytes // store.record.size_bytes, len(store.experts))
        if self.count < 1:
            raise ValueError("the host tier has no room for one record")
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
    def files(self) -> Sequence[Path]:
        """The files behind the tier."""
        return self._store.files

    def scratch_bytes(self) -> int:
        """Scratch that one reading thread needs."""
        return self._store.scratch_bytes()

    def chunks(self, expert: ExpertId, chunk_bytes: int) -> list[Extent]:
        """As the disk gives them."""
        return self._store.chunks(expert, chunk_bytes)

    def read(
        self, expert: ExpertId, piece: Extent, target: memoryview, scratch: memoryview
    ) -> None:
        """From the slab where the whole record is there, else from the disk, kept for later."""
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
            if not entry.whole:
                _copy(self._range(entry.slot, piece), target)
                entry.present[piece.record_offset] = piece.size_bytes

    def _admit(self, expert: ExpertId) -> _Entry:
        """Lock held. A slot for a record that is being read; the oldest leaves, whole or not."""
        if not self._free:
            self._free.append(self._entries.popitem(last=False)[1].slot)
        size = sum(piece.size_bytes for piece in self._store.chunks(expert, 1 << 62))
        entry = _Entry(self._free.pop(), size)
        self._entries[expert] = entry
        return entry

    def _range(self, slot: int, piece: Extent) -> memoryview:
        first = slot * self.record.size_bytes + piece.record_offset
        return self._view[first : first + piece.size_bytes]


def _copy(target: memoryview, source: memoryview) -> None:
    np.copyto(np.frombuffer(target, dtype=np.uint8), np.frombuffer(source, dtype=np.uint8))

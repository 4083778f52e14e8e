"""How fast this disk gives records of this size to this many threads, measured beside a run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from engine.device.pages import allocate_pages, bytes_view
from engine.experts.disk import Extent
from engine.experts.store import ExpertStore
from engine.types import ExpertId

_BYTES = 96_000_000
_MAX_RECORDS = 256


def record_bandwidth(store: ExpertStore, threads: int, chunk_bytes: int) -> float:
    """Bytes a second over a fixed spread of records, read by `threads` threads in chunks."""
    experts = store.experts
    count = max(threads, min(len(experts), _MAX_RECORDS, _BYTES // store.record.size_bytes))
    stride = max(1, len(experts) // count)
    chosen = experts[::stride][:count]
    parts = [chosen[number::threads] for number in range(threads)]
    buffers = [
        (
            bytes_view(allocate_pages(store.record.size_bytes)),
            bytes_view(allocate_pages(store.scratch_bytes())),
        )
        for _ in parts
    ]

    def read_all(number: int) -> int:
        target, scratch = buffers[number]
        return sum(
            _read(store, expert, piece, target, scratch)
            for expert in parts[number]
            for piece in store.chunks(expert, chunk_bytes)
        )

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(read_all, range(threads)))  # verifies what was never read before
        started = time.perf_counter()
        moved = sum(pool.map(read_all, range(threads)))
        return moved / (time.perf_counter() - started)


def _read(
    store: ExpertStore, expert: ExpertId, piece: Extent, target: memoryview, scratch: memoryview
) -> int:
    end = piece.record_offset + piece.size_bytes
    store.read(expert, piece, target[piece.record_offset : end], scratch)
    return piece.size_bytes

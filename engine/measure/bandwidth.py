"""Measures the read bandwidth of records beside a run: from the disk, or over the link."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

from engine.device.base import Device
from engine.device.pages import allocate_pages, bytes_view
from engine.experts.tiers.direct_io import Extent
from engine.experts.tiers.disk import ExpertStore
from engine.experts.tiers.host import HostTier
from engine.types import ExpertId

_BYTES = 96_000_000
_MAX_RECORDS = 256
_LINK_BYTES = 24_000_000


def link_bandwidth(device: Device, tier: HostTier, threads: int) -> float:
    """Bytes per second from the filled host tier into the device, `threads` record copies at a
    time."""
    size = tier.record.size_bytes
    arena = device.allocate_arena(threads * size)
    count = min(tier.count, _MAX_RECORDS, max(threads, _LINK_BYTES // size))
    scratch = [bytes_view(allocate_pages(tier.scratch_bytes())) for _ in range(threads)]
    experts = tier.held()[-count:]  # no record is read from the disk meanwhile

    def copy_all(number: int) -> int:
        target = arena[number * size : (number + 1) * size]
        own = experts[number::threads]
        for expert in own:
            with tier.borrow(expert, scratch[number]) as record:
                device.copy(target, record, None).synchronize()
        return len(own) * size

    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        moved = sum(pool.map(copy_all, range(threads)))
        seconds = time.perf_counter() - started
    device.release_arena(arena)
    return moved / seconds


def record_bandwidth(store: ExpertStore, threads: int, chunk_bytes: int) -> float:
    """Bytes per second over evenly spaced records, read by `threads` threads in chunks."""
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
        list(pool.map(read_all, range(threads)))  # verifies records that were never read before
        started = time.perf_counter()
        moved = sum(pool.map(read_all, range(threads)))
        return moved / (time.perf_counter() - started)


def _read(
    store: ExpertStore, expert: ExpertId, piece: Extent, target: memoryview, scratch: memoryview
) -> int:
    end = piece.record_offset + piece.size_bytes
    store.read(expert, piece, target[piece.record_offset : end], scratch)
    return piece.size_bytes

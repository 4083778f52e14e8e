"""Measures how much reads and products slow each other down if slots lie in host memory.

A small record costs more than its bytes: an I/O thread and the computing thread wake each other,
and take turns in one Python process. This cost decides whether a small cache pays off, and it only
shows when both run, so it is measured as the engine works: its own transfer threads fill slots
while an expert-sized product runs repeatedly.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.device.base import Device
from engine.experts.encoding.codec import RecordFormat
from engine.experts.slots import Slots
from engine.experts.tiers.direct_io import DiskReader, Extent
from engine.experts.tiers.disk import ExpertStore
from engine.experts.transfer import Transfer, TransferEngine
from engine.layout.record import Part, record_layout
from engine.policy.pools import Pool
from engine.policy.transfer_queue import FifoQueue
from engine.types import ExpertId

# Chunks from records of the smallest models to whole ones, and a matrix of the same size at 4 bits:
# the product computed meanwhile is with an expert of that record size.
SHAPES = {8 << 10: (128, 128), 64 << 10: (256, 512), 1 << 20: (1024, 2048)}
THREADS = 2
_OUTSTANDING = 4
_SPANS, _SPAN_S = 3, 0.03
_FEWEST = 20  # products in a span, however slow they are
_GROUP = 64


@dataclass(frozen=True)
class Interference:
    """bytes_per_s: of reads while products run; slowdown: of products while reads run, at least
    1."""

    bytes_per_s: float
    slowdown: float


def measure_interference(
    device: Device, file: Path, chunk_bytes: int, product: Callable[[], object]
) -> Interference:
    """Measure reads of one chunk size beside a product; medians over a few spans.

    file: at least a few chunks of test data. device must be host memory. Raises what a failed read
    raises.
    """
    store = _store_of(file, chunk_bytes)
    slots = Slots(device, {16: store.record}, [Pool(None, (16,), 2 * _OUTSTANDING)])
    transfers = TransferEngine(
        slots, {16: store}, FifoQueue(), threads=THREADS, chunk_bytes=1 << 20, in_flight=THREADS
    )
    try:
        product()
        speeds, slowdowns = [], []
        for _ in range(_SPANS):
            alone_s = _seconds(product)
            speed, beside_s = _beside_reads(product, transfers, store.experts, slots.count)
            speeds.append(speed)
            slowdowns.append(beside_s / alone_s)
    finally:
        transfers.close()
        slots.close()
        store.close()
    return Interference(statistics.median(speeds), max(1.0, statistics.median(slowdowns)))


def _seconds(product: Callable[[], object]) -> float:
    """Seconds of one product alone: the mean of a span, as in the measurement beside reads."""
    count, started = 0, time.perf_counter()
    while (spent := time.perf_counter() - started) < _SPAN_S or count < _FEWEST:
        product()
        count += 1
    return spent / count


def _beside_reads(
    product: Callable[[], object],
    transfers: TransferEngine,
    experts: Sequence[ExpertId],
    slots: int,
) -> tuple[float, float]:
    """Bytes per second that the threads read while products run, and seconds of one product."""
    turn = zip(itertools.cycle(experts), itertools.cycle(range(slots)), strict=False)
    outstanding: list[Transfer] = []
    count, spent, before = 0, 0.0, transfers.counters.moved_bytes
    started = now = time.perf_counter()
    while now - started < _SPAN_S or count < _FEWEST:
        outstanding = _unfinished(outstanding)
        for expert, slot in itertools.islice(turn, _OUTSTANDING - len(outstanding)):
            outstanding.append(transfers.submit(expert, slot, 16, demanded=True))
        begun = time.perf_counter()
        product()
        now = time.perf_counter()
        spent += now - begun
        count += 1
    moved = transfers.counters.moved_bytes - before
    transfers.drain()
    _unfinished(outstanding)
    return max(1.0, moved / (now - started)), spent / count


def _unfinished(transfers: Sequence[Transfer]) -> list[Transfer]:
    """The unfinished transfers. Raises the error that ended one of them."""
    for one in transfers:
        if one.error is not None:
            raise one.error
    return [one for one in transfers if not one.finished]


def _store_of(file: Path, chunk_bytes: int) -> ExpertStore:
    """The file as records of one chunk each, in an order that defeats read-ahead."""
    count = max(1, min(256, file.stat().st_size // chunk_bytes))
    experts: dict[ExpertId, tuple[Extent, ...]] = {
        ExpertId(0, n): (Extent(0, place * chunk_bytes, 0, chunk_bytes),)
        for n, place in enumerate(_jumping(count))
    }
    parts = (Part("weight", (chunk_bytes // (2 * _GROUP), _GROUP)),)
    record = RecordFormat(parts, record_layout(parts, 16, _GROUP), torch.bfloat16, "plain")
    return ExpertStore(DiskReader([file], "auto"), experts, {}, record, in_place=True)


def _jumping(count: int) -> Sequence[int]:
    return [number * 7919 % count for number in range(count)]

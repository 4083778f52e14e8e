"""A fixed kernel and a fixed read, timed beside each measurement to show the machine's speed
today."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch

from engine.contract.report import Sentinel
from engine.device.pages import allocate_pages, bytes_view
from engine.experts.tiers.direct_io import DiskReader, Extent

_SIZE = 384
_READ_BYTES = 1 << 20
_READS = 8


def measure_sentinel(file: Path) -> Sentinel:
    """Best of 5 products of two 384 x 384 float32 matrices; median read of 1 MiB of `file`."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(_SIZE, _SIZE, generator=generator)
    products = [_time(lambda: matrix @ matrix) for _ in range(5)]
    return Sentinel(compute_ms=min(products) * 1e3, read_ms=_median_read(file) * 1e3)


def _median_read(file: Path) -> float:
    size = file.stat().st_size
    reader = DiskReader([file], "auto")
    target = allocate_pages(_READ_BYTES)
    scratch = allocate_pages(reader.scratch_bytes(_READ_BYTES))
    seconds = []
    for number in range(_READS):
        span = min(_READ_BYTES, size)
        offset = (size - span) * number // _READS // 4096 * 4096
        extent = Extent(0, offset, 0, span)
        view, spare = bytes_view(target)[:span], bytes_view(scratch)
        started = time.perf_counter()
        reader.read(extent, view, spare)
        seconds.append(time.perf_counter() - started)
    reader.close()
    return sorted(seconds)[len(seconds) // 2]


def _time(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started

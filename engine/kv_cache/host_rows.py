"""Rows of keys and values of one layer: on the device, or on the host and prefetched a layer ahead.

Letters: N rows, R bytes of a row.
"""

from __future__ import annotations

import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import torch

from engine.device.base import Device, Event
from engine.layout.kv import HOST_GROWTH


class KvRows(Protocol):
    """Rows that are appended at the end and read as a whole."""

    def append(self, rows: torch.Tensor) -> None:
        """Add uint8 [n, R], which lies on the device."""

    def prefetch(self) -> None:
        """Prepare for a read that comes soon."""

    def read(self) -> torch.Tensor | None:
        """All rows on the device, [N, R]; None if there are none."""


class DeviceRows:
    """Implements KvRows: a tensor on the device."""

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None

    def append(self, rows: torch.Tensor) -> None:
        """Append the rows, [N + n, R]."""
        self._rows = rows if self._rows is None else torch.cat((self._rows, rows))

    def prefetch(self) -> None:
        """Does nothing: the rows are on the device."""

    def read(self) -> torch.Tensor | None:
        """The tensor itself."""
        return self._rows


class HostLink:
    """Copies rows from host to device in parallel with compute, on its own thread.

    Events order the copies against device compute, so neither overtakes the other. peak_host_bytes:
    the most that all rows held on the host together.
    """

    def __init__(self, device: Device) -> None:
        self.device = device
        self.moved_bytes = 0
        self.peak_host_bytes = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="kv-prefetch")
        self._held: weakref.WeakSet[HostRows] = weakref.WeakSet()

    def open_rows(self) -> HostRows:
        """Empty rows of one layer."""
        rows = HostRows(self)
        self._held.add(rows)
        return rows

    def fetch(self, source: torch.Tensor) -> Fetch:
        """Start copying host rows [N, R]; they must not change until the fetch is waited for."""
        with torch.inference_mode(False):  # another thread writes into it
            target = torch.empty(source.shape, dtype=torch.uint8, device=self.device.torch_device)
        # everything that used that memory, and wrote the source, is done
        behind = self.device.record()
        self.moved_bytes += source.numel()
        return Fetch(target, self._thread.submit(self.device.copy, target, source, behind))

    def note_growth(self) -> None:
        """Update the peak."""
        held = sum(rows.size_bytes for rows in self._held)
        self.peak_host_bytes = max(self.peak_host_bytes, held)

    def close(self) -> None:
        """Wait for running copies and stop the thread."""
        self._thread.shutdown()
        self.device.synchronize()


class Fetch:
    """A copy in progress."""

    def __init__(self, target: torch.Tensor, copy: Future[Event]) -> None:
        self._target = target
        self._copy = copy

    def wait(self, device: Device) -> torch.Tensor:
        """The rows on the device; later compute runs after the copy."""
        device.wait(self._copy.result())
        return self._target


class HostRows:
    """Implements KvRows: rows in host memory; prefetch copies them to the device."""

    def __init__(self, link: HostLink) -> None:
        self._link = link
        self._host: torch.Tensor | None = None  # [capacity, R]
        self._count = 0
        self._written: Event | None = None
        self._fetch: Fetch | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes held on the host."""
        return 0 if self._host is None else self._host.numel()

    def append(self, rows: torch.Tensor) -> None:
        """Copy the rows to the host, after the compute that produces them."""
        end = self._count + rows.shape[0]
        host = self._with_capacity(end, rows.shape[1])
        host[self._count : end].copy_(rows, non_blocking=True)
        self._written = self._link.device.record()
        self._count = end

    def prefetch(self) -> None:
        """Start copying all rows to the device, unless a copy is in progress."""
        if self._fetch is None and self._host is not None:
            self._fetch = self._link.fetch(self._host[: self._count])

    def read(self) -> torch.Tensor | None:
        """The device copy, which is used once; the next read makes another."""
        self.prefetch()
        if self._fetch is None:
            return None
        rows, self._fetch = self._fetch.wait(self._link.device), None
        return rows

    def _with_capacity(self, count: int, row_bytes: int) -> torch.Tensor:
        if self._host is not None and count <= self._host.shape[0]:
            return self._host
        held = 0 if self._host is None else self._host.shape[0]
        capacity = max(count, int(held * HOST_GROWTH))
        with torch.inference_mode(False):
            raw = self._link.device.allocate_staging(capacity * row_bytes)
        grown = raw[: capacity * row_bytes].view(capacity, row_bytes)
        if self._host is not None and self._written is not None:
            self._written.synchronize()
            grown[: self._count].copy_(self._host[: self._count])
        self._host = grown
        self._link.note_growth()
        return grown

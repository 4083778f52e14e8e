"""Rows of keys and values of one layer: on the device, or on the host and fetched a layer ahead.

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
    """Rows that grow at the end and are read as a whole."""

    def append(self, rows: torch.Tensor) -> None:
        """Add uint8 [n, R], which lies on the device."""

    def prefetch(self) -> None:
        """They will be read soon."""

    def read(self) -> torch.Tensor | None:
        """All of them on the device, [N, R]; None: there are none."""


class DeviceRows:
    """Implements KvRows: a tensor on the device."""

    def __init__(self) -> None:
        self._rows: torch.Tensor | None = None

    def append(self, rows: torch.Tensor) -> None:
        """Join them, [N + n, R]."""
        self._rows = rows if self._rows is None else torch.cat((self._rows, rows))

    def prefetch(self) -> None:
        """They are there."""

    def read(self) -> torch.Tensor | None:
        """Themselves."""
        return self._rows


class HostLink:
    """Carries rows from host to device beside the computation, on a thread of its own.

    Events order the copies against what the device computes, so neither overtakes the other.
    peak_host_bytes: the most that all rows held on the host together.
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
        """Start copying host rows [N, R], which nobody changes until the fetch is waited for."""
        with torch.inference_mode(False):  # another thread writes into it
            target = torch.empty(source.shape, dtype=torch.uint8, device=self.device.torch_device)
        behind = self.device.record()  # whatever used that memory, and wrote the source, is done
        self.moved_bytes += source.numel()
        return Fetch(target, self._thread.submit(self.device.copy, target, source, behind))

    def note_growth(self) -> None:
        """Keep the peak up to date."""
        held = sum(rows.size_bytes for rows in self._held)
        self.peak_host_bytes = max(self.peak_host_bytes, held)

    def close(self) -> None:
        """Wait for what is under way and stop the thread."""
        self._thread.shutdown()
        self.device.synchronize()


class Fetch:
    """A copy under way."""

    def __init__(self, target: torch.Tensor, copy: Future[Event]) -> None:
        self._target = target
        self._copy = copy

    def wait(self, device: Device) -> torch.Tensor:
        """The rows on the device; what is computed from now on comes after the copy."""
        device.wait(self._copy.result())
        return self._target


class HostRows:
    """Implements KvRows: host memory, of which prefetch brings a copy."""

    def __init__(self, link: HostLink) -> None:
        self._link = link
        self._host: torch.Tensor | None = None  # [room, R]
        self._count = 0
        self._written: Event | None = None
        self._fetch: Fetch | None = None

    @property
    def size_bytes(self) -> int:
        """Held on the host."""
        return 0 if self._host is None else self._host.numel()

    def append(self, rows: torch.Tensor) -> None:
        """Copy them down, behind what computes them."""
        end = self._count + rows.shape[0]
        host = self._with_capacity(end, rows.shape[1])
        host[self._count : end].copy_(rows, non_blocking=True)
        self._written = self._link.device.record()
        self._count = end

    def prefetch(self) -> None:
        """Start bringing all rows, unless that is under way."""
        if self._fetch is None and self._host is not None:
            self._fetch = self._link.fetch(self._host[: self._count])

    def read(self) -> torch.Tensor | None:
        """The copy, once; the next read brings another."""
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

"""The device contract: memory for slots, copies into it, and when they are done.

A device whose arena the disk can read into directly (the CPU) shows it through host_view; the
others get their bytes from page-aligned staging buffers by copy. Nothing else names a device type.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Event(Protocol):
    """Work queued on a device up to a point."""

    def synchronize(self) -> None:
        """Block the calling thread until that work is done."""

    def query(self) -> bool:
        """True once that work is done."""


class Device(Protocol):
    """Where experts live and are multiplied."""

    name: str
    torch_device: torch.device
    is_host_memory: bool

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        """Touched device memory, [size_bytes] uint8, page-aligned where it is host memory.

        Raises InfeasibleError when the device has not that much.
        """

    def release_arena(self, arena: torch.Tensor) -> None:
        """Give the memory back to the system. The tensor must not be used afterwards."""

    def give_back(self, part: torch.Tensor) -> None:
        """Return the pages of a part of an arena to the system; writing into it brings new ones.
        Only where the device is host memory."""

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        """The arena as writable host memory, None where the host cannot write into it."""

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        """Page-aligned host memory for reads, [size_bytes] uint8, pinned where that helps."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        """Queue host -> device behind `after`; the event tells when source may be reused."""

    def record(self) -> Event:
        """An event behind all compute queued so far."""

    def wait(self, event: Event) -> None:
        """Make later compute wait for the event without blocking the host."""

    def synchronize(self) -> None:
        """Block until everything queued is done. Called before each clock read."""

    def reset_peak(self) -> None:
        """Start a new reading of the peak."""

    def peak_bytes(self) -> int:
        """Device memory at its highest since reset_peak, as seen from outside the engine."""

    def peak_source(self) -> str:
        """How peak_bytes is read."""

    def compact(self) -> None:
        """Return cached free memory to the system."""

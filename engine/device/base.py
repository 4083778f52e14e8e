"""The device contract: memory for slots, copies into it, and completion events.

A device whose arena the disk can read into directly (the CPU) exposes it through host_view; the
others are filled by copies from page-aligned staging buffers. Nothing else names a device type.
"""

from __future__ import annotations

from typing import Protocol

import torch


class Event(Protocol):
    """A point in the work queued on a device."""

    def synchronize(self) -> None:
        """Block the calling thread until that work is done."""

    def query(self) -> bool:
        """True once that work is done."""


class Device(Protocol):
    """The device whose memory holds experts and which multiplies them."""

    name: str
    torch_device: torch.device
    is_host_memory: bool

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        """Touched device memory, [size_bytes] uint8, page-aligned if it is host memory.

        Raises InfeasibleError if the device does not have that much.
        """

    def release_arena(self, arena: torch.Tensor) -> None:
        """Return the memory to the system. The tensor must not be used afterwards."""

    def give_back(self, part: torch.Tensor) -> None:
        """Return the pages of a part of an arena to the system; writing into it allocates new
        ones. Only if the device is host memory."""

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        """The arena as writable host memory, None if the host cannot write into it."""

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        """Page-aligned host memory for reads, [size_bytes] uint8, pinned if that helps."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        """Queue a host -> device copy after `after`; the event fires when source may be reused."""

    def record(self) -> Event:
        """An event after all compute queued so far."""

    def wait(self, event: Event) -> None:
        """Make later compute wait for the event without blocking the host."""

    def synchronize(self) -> None:
        """Block until all queued work is done. Called before each clock read."""

    def reset_peak(self) -> None:
        """Start a new reading of the peak."""

    def peak_bytes(self) -> int:
        """Highest device memory since reset_peak, as measured from outside the engine."""

    def peak_source(self) -> str:
        """How peak_bytes is measured."""

    def compact(self) -> None:
        """Return cached free memory to the system."""

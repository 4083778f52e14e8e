"""The device contract: memory for slots, copies into it, and completion events.

A device whose arena the disk can read into directly (the CPU) exposes it through host_view; the
others are filled by copies from page-aligned staging buffers. Nothing else names a device type.
"""

from __future__ import annotations

from typing import Protocol

import torch

from engine.device.capture import Capturer
from engine.errors import DeviceMemoryError


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
    context_bytes: int | None  # of the driver's context; None if unknown, 0 if there is none
    card: str | None  # the UUID of an accelerator, by which commands take turns on it

    @property
    def capturer(self) -> Capturer | None:
        """Captures what is queued here; None if this device cannot."""

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

    def pin(self, pages: torch.Tensor) -> int:
        """Pin host memory for copies, from its start and without rounding up. pages: page-aligned
        uint8 that stays until unpin. Returns how many bytes are pinned: less than asked for where
        the system limits it; all of them on a device that has no use for it."""

    def unpin(self, pages: torch.Tensor) -> None:
        """Undo `pin`; no copy may be under way."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        """Queue a host -> device copy after `after`; the event fires when source may be reused."""

    def bind_thread(self) -> None:
        """Make this device the calling thread's own, for kernels that are launched on a thread's
        present device."""

    def record(self) -> Event:
        """An event after all compute queued so far."""

    def timestamp(self) -> Event:
        """As record, with the time at which it is done, for elapsed_s."""

    def elapsed_s(self, first: Event, last: Event) -> float:
        """Seconds of the device between two timestamps, both done; 0 if compute is synchronous."""

    def wait(self, event: Event) -> None:
        """Make later compute wait for the event without blocking the host."""

    def synchronize(self) -> None:
        """Block until all queued work is done. Called before each clock read."""

    def limit(self, budget_bytes: int) -> None:
        """Refuse device memory beyond the budget from now on; 0 lifts the limit. Without effect
        where nothing enforces one (host memory): there the outside reading alone tells."""

    def out_of_memory(self, error: Exception) -> DeviceMemoryError:
        """An allocator's error as a sentence for people."""

    def reset_peak(self) -> None:
        """Start a new reading of the peak."""

    def peak_bytes(self) -> int:
        """Highest device memory since reset_peak, as measured from outside the engine."""

    def peak_source(self) -> str:
        """How peak_bytes is measured."""

    def compact(self) -> None:
        """Return cached free memory to the system."""

"""The CPU as device: slots in RAM under a budget, the disk as slow tier. Real offloading.

Copies are complete when they return, so events are trivial; concurrency comes from I/O threads.
"""

from __future__ import annotations

import torch

from engine.device import process_memory
from engine.device.base import Event
from engine.device.capture import Capturer
from engine.device.memory_error import device_memory_error
from engine.device.pages import allocate_pages, bytes_view, give_pages_back
from engine.errors import DeviceMemoryError, InfeasibleError
from engine.types import format_bytes


class DoneEvent:
    """An event of a device that finishes work before it returns."""

    def synchronize(self) -> None:
        """Does nothing: there is nothing to wait for."""

    def query(self) -> bool:
        """Always True: the work is done."""
        return True


class CpuDevice:
    """Implements Device over host memory."""

    is_host_memory = True
    context_bytes: int | None = 0
    card: str | None = None
    capturer: Capturer | None = None

    def __init__(self) -> None:
        self.name = "cpu"
        self.torch_device = torch.device("cpu")
        self._can_reset = process_memory.reset_peak()

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        """Touched pages, [size_bytes] uint8."""
        try:
            return allocate_pages(size_bytes)
        except MemoryError:
            raise InfeasibleError(
                f"this machine cannot give {format_bytes(size_bytes)} of memory for expert slots: "
                "lower cache.expert_bytes"
            ) from None

    def release_arena(self, arena: torch.Tensor) -> None:
        """Does nothing: the pages are freed with the last view of them."""

    def give_back(self, part: torch.Tensor) -> None:
        """Return the pages to the system at once."""
        give_pages_back(part)

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        """The arena itself: the disk is read directly into slots."""
        return bytes_view(arena)

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        """Touched pages, [size_bytes] uint8."""
        return allocate_pages(size_bytes)

    def pin(self, pages: torch.Tensor) -> int:
        """Nothing to do: copies read any memory."""
        return pages.numel()

    def unpin(self, pages: torch.Tensor) -> None:
        """Nothing to do."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        """A plain copy."""
        target.copy_(source)
        return DoneEvent()

    def bind_thread(self) -> None:
        """Does nothing: host memory is every thread's."""

    def record(self) -> Event:
        """An event that is already done: compute is synchronous."""
        return DoneEvent()

    def timestamp(self) -> Event:
        """As record."""
        return self.record()

    def elapsed_s(self, first: Event, last: Event) -> float:
        """0: compute is synchronous."""
        return 0.0

    def wait(self, event: Event) -> None:
        """Does nothing: there is nothing to wait for."""

    def synchronize(self) -> None:
        """Does nothing: no work is queued."""

    def limit(self, budget_bytes: int) -> None:
        """Does nothing: the process's memory is read from outside, not bounded."""

    def out_of_memory(self, error: Exception) -> DeviceMemoryError:
        """The allocator's error in a sentence for people."""
        return device_memory_error(self.name, str(error))

    def reset_peak(self) -> None:
        """Reset VmHWM."""
        self._can_reset = process_memory.reset_peak()

    def peak_bytes(self) -> int:
        """VmHWM of this process since reset_peak."""
        return process_memory.peak_resident_bytes()

    def peak_source(self) -> str:
        """VmHWM, reset at configure if the kernel allows it."""
        name = process_memory.peak_source()
        return name if self._can_reset else f"{name} (since the process started)"

    def compact(self) -> None:
        """Trim the allocator."""
        process_memory.trim()

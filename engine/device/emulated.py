"""An emulated device: RAM as its memory, behind a link of limited rate and latency.

The same engine runs on it with RAM as host tier. The CPU computes at its own speed; link and host
memory are slowed by the profile's factor, so that their ratio to compute is the real machine's. Its
measurements are labelled emulated.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import torch

from engine.device import process_memory
from engine.device.base import Event
from engine.device.capture import Capturer
from engine.device.cpu import CpuDevice, DoneEvent
from engine.errors import DeviceMemoryError
from engine.facts.emulated_machine import PREFIX, EmulatedMachine


class Link:
    """One queue of transfers: each takes latency + bytes / rate, after those before it.

    now, sleep: the clock.
    """

    def __init__(
        self,
        bytes_per_s: float,
        latency_s: float,
        now: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rate = bytes_per_s
        self._latency = latency_s
        self._now = now
        self._sleep = sleep
        self._lock = threading.Lock()
        self._free_at = 0.0

    def carry(self, size_bytes: int, copy: Callable[[], object]) -> None:
        """Run `copy` and return when the emulated link would have transferred size_bytes."""
        with self._lock:
            begin = max(self._now(), self._free_at)
            done_at = self._free_at = begin + self._latency + size_bytes / self._rate
        copy()
        rest = done_at - self._now()
        if rest > 0:
            self._sleep(rest)


class EmulatedDevice:
    """Implements Device: the CPU's memory behind a slow link."""

    is_host_memory = False
    context_bytes: int | None = 0
    card: str | None = None
    capturer: Capturer | None = None

    def __init__(self, machine: EmulatedMachine) -> None:
        process_memory.sleep_exactly()
        self.machine = machine
        self.name = f"{PREFIX}{machine.name}"
        self._cpu = CpuDevice()
        self.torch_device = self._cpu.torch_device
        self._link = Link(machine.slowed_link_bytes_per_s, machine.slowed_link_latency_s)

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        """Touched pages, [size_bytes] uint8."""
        return self._cpu.allocate_arena(size_bytes)

    def release_arena(self, arena: torch.Tensor) -> None:
        """Does nothing: the pages are freed with the last view of them."""

    def give_back(self, part: torch.Tensor) -> None:
        """Return the pages to the system at once."""
        self._cpu.give_back(part)

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        """None: data arrives over the link only."""
        return None

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        """Touched pages, [size_bytes] uint8."""
        return self._cpu.allocate_staging(size_bytes)

    def pin(self, pages: torch.Tensor) -> int:
        """Nothing to do: copies read any memory."""
        return pages.numel()

    def unpin(self, pages: torch.Tensor) -> None:
        """Nothing to do."""

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        """Copy over the link; complete when it returns."""
        self._link.carry(source.numel(), lambda: target.copy_(source))
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
        return self._cpu.out_of_memory(error)

    def reset_peak(self) -> None:
        """Reset VmHWM."""
        self._cpu.reset_peak()

    def peak_bytes(self) -> int:
        """VmHWM of this process since reset_peak, the host tier included."""
        return self._cpu.peak_bytes()

    def peak_source(self) -> str:
        """How peak_bytes is measured."""
        return f"{self._cpu.peak_source()} less the host tier, emulated"

    def compact(self) -> None:
        """Trim the allocator."""
        self._cpu.compact()

"""Any accelerator that torch knows (cuda, xpu, an out-of-tree type), through torch.accelerator.

Copies run on their own stream from pinned staging buffers; events order them against compute, so
the host blocks only when it reuses a staging buffer.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from typing import Any

import torch

from engine.device.base import Event
from engine.device.capture import Capturer, CudaCapturer
from engine.device.memory_error import device_memory_error
from engine.device.outside_memory import OutsideMemory, card_of, memory_info
from engine.device.pages import allocate_pages
from engine.errors import DeviceMemoryError, UsageError

_log = logging.getLogger(__name__)
_PIN_BYTES = 1 << 30  # registered at a time, so that a limit leaves most of it pinned


def usable_accelerator() -> torch.device | None:
    """The accelerator that is here and works, None if there is none.

    Without the check, a build of torch for CUDA answers `cuda` on every machine: it tells what it
    was built for.
    """
    return torch.accelerator.current_accelerator(check_available=True)


def find_accelerator(name: str) -> torch.device:
    """The device of this name, such as `cuda:0` or `xpu`, with its number; makes no context on it.

    Raises UsageError if torch has no such device here.
    """
    current = usable_accelerator()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"torch knows no device '{name}': try cpu or cuda:0") from None
    if current is None or current.type != device.type:
        raise UsageError(f"this machine has no device '{name}': {_what_is_here(current)}")
    count, index = torch.accelerator.device_count(), device.index or 0
    if index >= count:
        raise UsageError(f"there is no {name}: torch sees {count} such devices")
    return torch.device(device.type, index)


def bind_thread_to(device: torch.device) -> None:
    """Make this device the calling thread's own: a thread begins with the first one, and kernels
    are launched, and `cuda` means, the thread's own. Does nothing on the CPU."""
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index or 0)


class AcceleratorDevice:
    """Implements Device for torch.device types with streams and events.

    name: see find_accelerator, whose errors it raises. Opening gives this process a context there.
    """

    is_host_memory = False

    def __init__(self, name: str) -> None:
        self.torch_device = find_accelerator(name)
        self.name = str(self.torch_device)
        self.card: str | None = card_of(self.torch_device)
        self._local = threading.local()
        self._pinned: dict[int, int] = {}  # bytes, by address
        self._limit_bytes = 0
        self._said_pageable = False
        self._outside = OutsideMemory(self.torch_device, self._make_context)
        self._beside = "not read"
        self.context_bytes: int | None = self._outside.context_bytes

    def _make_context(self) -> None:
        self.bind_thread()
        torch.zeros(1, device=self.torch_device)
        self.synchronize()

    @functools.cached_property
    def capturer(self) -> Capturer | None:
        """CUDA graphs (HIP's too); None on other devices."""
        return CudaCapturer(self.torch_device) if self.torch_device.type == "cuda" else None

    def bind_thread(self) -> None:
        """Make this device the calling thread's own."""
        bind_thread_to(self.torch_device)

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        """Device memory, [size_bytes] uint8."""
        try:
            arena = torch.zeros(size_bytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError as error:
            raise self.out_of_memory(error) from None
        self.synchronize()  # copies on other streams must not overtake the zeros
        return arena

    def release_arena(self, arena: torch.Tensor) -> None:
        """Wait until nothing uses the arena; compact() frees its memory."""
        self.synchronize()

    def give_back(self, part: torch.Tensor) -> None:
        """Not supported: configs that would need it are refused (kv.elastic)."""
        raise AssertionError("an accelerator's arena stays whole")

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        """None: the host cannot write into device memory."""
        return None

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        """Pinned host memory, page-aligned; pageable if pinning fails (WSL limits it), and one line
        of the log says so."""
        try:
            pinned = torch.empty(size_bytes + 4096, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            if not self._said_pageable:
                _log.warning(
                    "buffers of %s are not pinned, since the system allows no more: copies are "
                    "slower (`ulimit -l`; WSL has a limit)",
                    self.name,
                )
                self._said_pageable = True
            return allocate_pages(size_bytes)
        start = -pinned.data_ptr() % 4096
        return pinned[start : start + size_bytes]

    def pin(self, pages: torch.Tensor) -> int:
        """Register the pages with the driver, piece by piece until it refuses; 0 where torch has no
        call for it."""
        runtime = self._registering()
        pinned = 0
        while runtime is not None and pinned < pages.numel():
            size = min(_PIN_BYTES, pages.numel() - pinned)
            if int(runtime.cudaHostRegister(pages.data_ptr() + pinned, size, 0)) != 0:
                with contextlib.suppress(RuntimeError):  # the next launch reports the refusal
                    torch.zeros(1, device=self.torch_device)
                break
            pinned += size
        if pinned:
            self._pinned[pages.data_ptr()] = pinned
        return pinned

    def unpin(self, pages: torch.Tensor) -> None:
        """Unregister what `pin` registered."""
        runtime = self._registering()
        for start in range(0, self._pinned.pop(pages.data_ptr(), 0), _PIN_BYTES):
            runtime.cudaHostUnregister(pages.data_ptr() + start)

    def _registering(self) -> Any:
        """The calls of the CUDA (or HIP) runtime that register pages, None on other devices."""
        if self.torch_device.type != "cuda":
            return None
        return torch.cuda.cudart()  # type: ignore[no-untyped-call]

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        """Queue the copy on the copy stream after `after`."""
        stream = self._copy_stream()
        with stream:
            if after is not None:
                stream.wait_event(after)  # type: ignore[arg-type]
            target.copy_(source, non_blocking=True)
        return stream.record_event()

    def _copy_stream(self) -> torch.Stream:
        """One stream per thread: a stream as context manager is not shared between threads."""
        if not hasattr(self._local, "stream"):
            self.bind_thread()
            self._local.stream = torch.Stream(self.torch_device)
        stream: torch.Stream = self._local.stream
        return stream

    def record(self) -> Event:
        """An event on the current compute stream."""
        return torch.accelerator.current_stream(self.torch_device).record_event()

    def timestamp(self) -> Event:
        """An event on the current compute stream that keeps its time."""
        event = torch.Event(self.torch_device, enable_timing=True)
        event.record(torch.accelerator.current_stream(self.torch_device))
        return event

    def elapsed_s(self, first: Event, last: Event) -> float:
        """By the device's own clock."""
        return float(first.elapsed_time(last)) / 1e3  # type: ignore[attr-defined]

    def wait(self, event: Event) -> None:
        """Make the compute stream wait for the event."""
        stream = torch.accelerator.current_stream(self.torch_device)
        stream.wait_event(event)  # type: ignore[arg-type]

    def synchronize(self) -> None:
        """Wait for all streams of the device."""
        torch.accelerator.synchronize(self.torch_device)

    def reset_peak(self) -> None:
        """Reset torch's peak counter."""
        torch.accelerator.reset_peak_memory_stats(self.torch_device)

    def peak_bytes(self) -> int:
        """torch's reserved peak since reset_peak, plus what this process holds beside it now.

        The second part is not given back before the process ends, so that the sum is the most that
        this process held at once; see OutsideMemory for what counts it.
        """
        beside_bytes, self._beside = self._outside.beside_torch()
        return int(torch.accelerator.max_memory_reserved(self.torch_device)) + beside_bytes

    def peak_source(self) -> str:
        """How the latest peak_bytes was measured."""
        return f"torch reserved peak + {self._beside}"

    def limit(self, budget_bytes: int) -> None:
        """torch reserves at most the budget less the context; without effect where torch cannot
        bound its allocator."""
        module = torch.get_device_module(self.torch_device)
        memory = memory_info(self.torch_device)
        if memory is None or not hasattr(module, "set_per_process_memory_fraction"):
            return
        left_bytes = max(0, budget_bytes - self._outside.own_context())
        fraction = min(1.0, left_bytes / memory[1]) if budget_bytes else 1.0
        module.set_per_process_memory_fraction(fraction, self.torch_device)
        self._limit_bytes = budget_bytes

    def out_of_memory(self, error: Exception) -> DeviceMemoryError:
        """torch's error in a sentence for people."""
        memory = memory_info(self.torch_device)
        free_bytes = None if memory is None else memory[0]
        return device_memory_error(
            self.name, str(error), budget_bytes=self._limit_bytes, free_bytes=free_bytes
        )

    def compact(self) -> None:
        """Empty torch's caches, including the pinned one if torch can."""
        torch.accelerator.empty_cache()
        if hasattr(torch.accelerator, "empty_host_cache"):
            torch.accelerator.empty_host_cache()


def _what_is_here(current: torch.device | None) -> str:
    if current is not None:
        return f"torch sees only {current.type} and cpu"
    built = torch.accelerator.current_accelerator()
    if built is None:
        return "torch sees only cpu, and this build of it knows no accelerator"
    return (
        f"torch was built for {built.type} and sees no such card: check its driver "
        "(`nvidia-smi`, CUDA_VISIBLE_DEVICES), or use --device cpu"
    )

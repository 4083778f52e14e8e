"""Any accelerator that torch knows (cuda, xpu, an out-of-tree type), through torch.accelerator.

Copies run on their own stream from pinned staging buffers; events order them against compute, so
the host blocks only when it reuses a staging buffer.
"""

from __future__ import annotations

import threading

import torch

from engine.device.base import Event
from engine.device.pages import allocate_pages
from engine.errors import InfeasibleError, UsageError
from engine.types import format_bytes


def usable_accelerator() -> torch.device | None:
    """The accelerator that is here and works, None if there is none.

    Without the check, a build of torch for CUDA answers `cuda` on every machine: it tells what it
    was built for.
    """
    return torch.accelerator.current_accelerator(check_available=True)


class AcceleratorDevice:
    """Implements Device for torch.device types with streams and events.

    name: such as `cuda:0` or `xpu`. Raises UsageError if torch has no such device here.
    """

    is_host_memory = False

    def __init__(self, name: str) -> None:
        current = usable_accelerator()
        try:
            self.torch_device = torch.device(name)
        except RuntimeError:
            raise UsageError(f"torch knows no device '{name}': try cpu or cuda:0") from None
        if current is None or current.type != self.torch_device.type:
            raise UsageError(f"this machine has no device '{name}': {_what_is_here(current)}")
        count = torch.accelerator.device_count()
        index = self.torch_device.index or 0
        if index >= count:
            raise UsageError(f"there is no {name}: torch sees {count} such devices")
        self.torch_device = torch.device(self.torch_device.type, index)
        self.name = str(self.torch_device)
        torch.accelerator.set_device_index(index)
        self._local = threading.local()

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        """Device memory, [size_bytes] uint8."""
        try:
            arena = torch.zeros(size_bytes, dtype=torch.uint8, device=self.torch_device)
        except torch.OutOfMemoryError:
            raise InfeasibleError(
                f"{self.name} cannot give {format_bytes(size_bytes)} for expert slots: close other "
                "programs on it or lower cache.expert_bytes"
            ) from None
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
        """Pinned host memory, page-aligned; pageable if pinning fails (WSL limits it)."""
        try:
            pinned = torch.empty(size_bytes + 4096, dtype=torch.uint8, pin_memory=True)
        except RuntimeError:
            return allocate_pages(size_bytes)
        start = -pinned.data_ptr() % 4096
        return pinned[start : start + size_bytes]

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
            torch.accelerator.set_device_index(self.torch_device.index)
            self._local.stream = torch.Stream(self.torch_device)
        stream: torch.Stream = self._local.stream
        return stream

    def record(self) -> Event:
        """An event on the current compute stream."""
        return torch.accelerator.current_stream(self.torch_device).record_event()

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
        """torch's reserved peak plus the memory that the context takes.

        The context is the device memory in use that torch has not reserved; on a device that other
        programs use too it includes theirs, so it is an upper bound.
        """
        reserved = torch.accelerator.memory_reserved(self.torch_device)
        peak = torch.accelerator.max_memory_reserved(self.torch_device)
        if not hasattr(torch.accelerator, "get_memory_info"):  # torch 2.9
            return int(peak)
        free, total = torch.accelerator.get_memory_info(self.torch_device)
        return int(peak + max(0, total - free - reserved))

    def peak_source(self) -> str:
        """How peak_bytes is measured."""
        has_total = hasattr(torch.accelerator, "get_memory_info")
        return "torch reserved peak + other memory in use" if has_total else "torch reserved peak"

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

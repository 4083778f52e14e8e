"""NVIDIA cards that are not here, behind torch.accelerator, torch.cuda and NVML.

A card counts bytes only: tensors on it are ordinary memory, and nothing computes. Other programs
use a part of it; a context and loaded kernels take theirs. What the driver says of processes is as
on a plain machine, inside a container, or under WSL.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

import pynvml
import pytest
import torch

SEGMENT = 2 << 20  # what torch's allocator takes from the driver at least
Processes = Literal["listed", "host numbers", "hidden", "without bytes"]


@dataclass
class Card:
    """One card. others_bytes: of programs by process number; context_bytes: what a new context
    takes; kernels_bytes: what this process loaded since."""

    uuid: str
    total_bytes: int = 8 << 30
    others_bytes: dict[int, int] = field(default_factory=lambda: {1: 700 << 20})
    context_bytes: int = 420 << 20
    kernels_bytes: int = 0
    has_context: bool = False
    allocated_bytes: int = 0
    reserved_bytes: int = 0
    peak_bytes: int = 0
    fraction: float = 1.0

    @property
    def own_bytes(self) -> int:
        """What this process holds."""
        return self.reserved_bytes + (self.context_bytes + self.kernels_bytes) * self.has_context

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.own_bytes - sum(self.others_bytes.values())

    def allocate(self, size_bytes: int) -> torch.Tensor:
        """Untouched memory, uint8, counted until it is dropped."""
        self.has_context = True
        size = -(-size_bytes // SEGMENT) * SEGMENT
        needed = self.allocated_bytes + size - self.reserved_bytes
        allowed = int(self.fraction * self.total_bytes) - self.reserved_bytes
        if needed > min(allowed, self.free_bytes):
            raise torch.OutOfMemoryError(
                f"CUDA out of memory. Tried to allocate {size / (1 << 20):.2f} MiB. GPU 0 has a "
                "total capacity of 8.00 GiB."
            )
        self.allocated_bytes += size
        self.reserved_bytes = max(self.reserved_bytes, self.allocated_bytes)
        self.peak_bytes = max(self.peak_bytes, self.reserved_bytes)
        tensor = torch.empty(size_bytes, dtype=torch.uint8)
        weakref.finalize(tensor, self._free, size)
        return tensor

    def _free(self, size: int) -> None:
        self.allocated_bytes -= size


@dataclass
class Machine:
    """The cards as torch numbers them. present: of the thread that asks, as torch keeps it."""

    cards: list[Card]
    processes: Processes = "listed"
    has_driver_library: bool = True
    knows_memory: bool = True
    present: int = 0

    def pid_of(self, number: int) -> int:
        """The driver's number of one of its processes."""
        return number + 100_000 if self.processes == "host numbers" else number

    def listed(self, card: Card) -> list[Any]:
        if self.processes == "hidden":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        own = {self.pid_of(os.getpid()): card.own_bytes} if card.has_context else {}
        counted = self.processes != "without bytes"
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=size if counted else None)
            for pid, size in (card.others_bytes | own).items()
        ]


def simulate(monkeypatch: pytest.MonkeyPatch, *cards: Card, **facts: Any) -> Machine:
    """Put these cards into torch and NVML for one test."""
    machine = Machine(list(cards), **facts)

    def card_of(device: Any = None) -> Card:
        index = torch.device(device).index if isinstance(device, (str, torch.device)) else device
        return machine.cards[machine.present if index is None else index]

    def reset_peak(device: Any = None) -> None:
        card_of(device).peak_bytes = card_of(device).reserved_bytes

    def memory(device: Any = None) -> tuple[int, int]:
        card_of(device).has_context = True
        return card_of(device).free_bytes, card_of(device).total_bytes

    def empty_cache() -> None:
        for card in machine.cards:
            card.reserved_bytes = card.allocated_bytes

    def present(device: Any) -> None:
        machine.present = torch.device("cuda", device).index

    def bound(fraction: float, device: Any = None) -> None:
        card_of(device).fraction = fraction

    torch_side: dict[str, Callable[..., Any]] = {
        "current_accelerator": lambda check_available=False: torch.device("cuda"),
        "device_count": lambda: len(machine.cards),
        "is_available": lambda: True,
        "set_device_index": present,
        "memory_reserved": lambda device=None: card_of(device).reserved_bytes,
        "max_memory_reserved": lambda device=None: card_of(device).peak_bytes,
        "reset_peak_memory_stats": reset_peak,
        "synchronize": lambda device=None: None,
        "empty_cache": empty_cache,
        "empty_host_cache": lambda: None,
    }
    for name, call in torch_side.items():
        monkeypatch.setattr(torch.accelerator, name, call, raising=False)
    if machine.knows_memory:
        monkeypatch.setattr(torch.accelerator, "get_memory_info", memory, raising=False)
    else:
        monkeypatch.delattr(torch.accelerator, "get_memory_info", raising=False)
        monkeypatch.delattr(torch.cuda, "mem_get_info")
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", bound)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(uuid=card_of(device).uuid),
    )
    _simulate_driver(monkeypatch, machine)
    made = torch.zeros

    def zeros(*size: int, device: Any = None, **options: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != "cuda":
            return made(*size, device=device, **options)
        return card_of(device).allocate(size[0])

    monkeypatch.setattr(torch, "zeros", zeros)
    return machine


def _simulate_driver(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    def by_uuid(uuid: str) -> Card:
        for card in machine.cards:
            if machine.has_driver_library and uuid == f"GPU-{card.uuid}":
                return card
        raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)

    def memory(card: Card) -> Any:
        return SimpleNamespace(total=card.total_bytes, free=card.free_bytes)

    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", by_uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", memory)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", machine.listed)

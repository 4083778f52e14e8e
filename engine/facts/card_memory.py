"""The memory of one NVIDIA card as its driver counts it: of the whole card, and of this process.

A figure that the driver does not report, or reports as garbage, is None. No torch.
"""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import pynvml

from engine.facts.cards import ask_driver, plausible

# Memory of a driver's context on an accelerator before any tensor: a typical CUDA value, for plans
# before the device is opened. A device that is opened measures its own where it can.
CONTEXT_BYTES = 500_000_000


class CardMemory:
    """Reads one card, by its UUID with or without the prefix `GPU-` or `MIG-`.

    A UUID means the same card whatever CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER say. Without a
    driver, or a card of this UUID, every reading is None.
    """

    def __init__(self, uuid: str) -> None:
        ask_driver(pynvml.nvmlInit)
        names = (uuid, f"GPU-{uuid}", f"MIG-{uuid}")
        handles = (ask_driver(partial(pynvml.nvmlDeviceGetHandleByUUID, name)) for name in names)
        self._card: Any = next((handle for handle in handles if handle is not None), None)
        self._before = self._processes()
        self._pid: int | None = None

    def used_bytes(self) -> int | None:
        """Memory that is not free, whoever holds it."""
        memory = ask_driver(lambda: pynvml.nvmlDeviceGetMemoryInfo(self._card))
        total = plausible(getattr(memory, "total", None))
        free = plausible(getattr(memory, "free", None))
        return None if total is None or free is None or free > total else total - free

    def find_process(self) -> None:
        """Find this process in the driver's list; call it as soon as this process has a context.

        Inside a container the driver counts processes by the host's numbers: then it is the only
        one that came since this object was made.
        """
        listed = self._processes()
        came = listed.keys() - self._before.keys()
        if os.getpid() in came or (os.getpid() in listed and not came):
            self._pid = os.getpid()
        elif len(came) == 1:
            (self._pid,) = came

    def process_bytes(self, least_bytes: int) -> int | None:
        """Memory of this process on the card, its context included.

        least_bytes: what it holds for certain; a figure below it is that of another process with
        this number, so None. None too under WDDM and WSL, which do not count by process.
        """
        found = None if self._pid is None else self._processes().get(self._pid)
        return None if found is None or found < least_bytes else found

    def _processes(self) -> dict[int, int | None]:
        """Bytes by process number; empty if the driver lists none, or no list."""
        return ask_driver(self._list_processes) or {}

    def _list_processes(self) -> dict[int, int | None]:
        listed: list[Any] = pynvml.nvmlDeviceGetComputeRunningProcesses(self._card)
        return {one.pid: plausible(one.usedGpuMemory) for one in listed}

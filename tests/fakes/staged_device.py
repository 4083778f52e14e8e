"""A device that the host cannot write: the accelerator's path on a machine without one.

Its "device memory" is ordinary memory behind copies that a thread finishes later, as a copy stream
would, so that staging, events and the host tier run for real. From the beginning of a copy until
its end the target holds NaN, so that compute which does not wait for it shows in the output.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from engine.device.base import Event
from engine.device.cpu import CpuDevice

NAN_BYTE = 0xFF  # of a NaN in every float type; the last code, of codes
COPY_S = 0.0002  # a copy takes longer than a product of a tiny model


class FutureEvent:
    """Done when its future is."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def synchronize(self) -> None:
        self._future.result()

    def query(self) -> bool:
        return self._future.done()


class StagedDevice(CpuDevice):
    """Copies run in order on one thread, after the event they wait for."""

    is_host_memory = False

    def __init__(self) -> None:
        super().__init__()
        self._stream = ThreadPoolExecutor(1)
        self.copied_bytes = 0
        self._lock = threading.Lock()

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        return None

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        def run() -> None:
            if after is not None:
                after.synchronize()
            target.fill_(NAN_BYTE)
            time.sleep(COPY_S)
            target.copy_(source)

        with self._lock:
            self.copied_bytes += source.numel()
        return FutureEvent(self._stream.submit(run))

    def wait(self, event: Event) -> None:
        event.synchronize()

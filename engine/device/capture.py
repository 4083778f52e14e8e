"""Captures the work that is queued on a device, so that one call queues it again.

A capture runs nothing: it records kernels with the addresses that they read and write. What the
host decides meanwhile (a length, a branch) stays as it was, so such values have to lie on the
device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Protocol

import torch


class Graph(Protocol):
    """Captured work."""

    def replay(self) -> None:
        """Queue it again, over the same memory."""


class Capture(Protocol):
    """A capture in parts, between which work runs as always."""

    def begin(self) -> None:
        """From now on capture what this thread queues, instead of running it."""

    def end(self) -> Graph:
        """End the part. Raises RuntimeError if something in it could not be captured."""


class Capturer(Protocol):
    """Captures on one device."""

    def rehearsal(self) -> AbstractContextManager[Capture]:
        """Inside the block work runs where it will be captured, so that libraries make what they
        make at their first call. Raises RuntimeError where the host waits for the device."""

    def capture(self) -> AbstractContextManager[Capture]:
        """Inside the block parts can be captured. All of them share memory of their own: a tensor
        that nobody holds after its part is overwritten by later ones."""


class CudaCapturer:
    """Implements Capturer with CUDA graphs.

    Its stream is always the same one, because cuBLAS keeps a workspace for each.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def rehearsal(self) -> Iterator[Capture]:
        """Work runs on the stream of captures, and torch refuses to synchronize."""
        former = torch.cuda.get_sync_debug_mode()
        with self._beside():
            torch.cuda.set_sync_debug_mode("error")
            try:
                yield _Rehearsal()
            finally:
                torch.cuda.set_sync_debug_mode(former)

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        """Parts share one pool of torch's allocator. A part that was begun is always ended."""
        under_way = _CudaCapture()
        with self._beside():
            try:
                yield under_way
            finally:
                under_way.abandon()

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """Inside the block work is queued on the own stream: after all so far, before what
        follows."""
        compute = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(compute)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            compute.wait_stream(self._stream)


class _CudaCapture:
    """Implements Capture."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._part: torch.cuda.CUDAGraph | None = None

    def begin(self) -> None:
        """Other threads may copy and allocate meanwhile."""
        self._part = torch.cuda.CUDAGraph()
        self._part.capture_begin(pool=self._pool, capture_error_mode="thread_local")

    def end(self) -> Graph:
        """The part, ready to run."""
        assert self._part is not None, "no part was begun"
        part, self._part = self._part, None
        part.capture_end()
        return part

    def abandon(self) -> None:
        """End a part that an error left open."""
        if self._part is not None:
            with suppress(RuntimeError):  # the error itself is on its way
                self.end()


class _Rehearsal:
    """Implements Capture: captures nothing."""

    def begin(self) -> None:
        """Does nothing."""

    def end(self) -> Graph:
        """Work that has run already."""
        return self

    def replay(self) -> None:
        """Does nothing."""

"""Captures without a card: operations are recorded with their tensors, and done again on the same.

As with a CUDA graph, nothing runs while it is captured: what it wrote is put back and what it made
is spoiled at the end of each part. A replay runs no Python of the model, so whatever the host knew
of one token (a length, a position, a mask) is wrong at the next.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from engine.device.base import Event
from engine.device.capture import Capture, Graph
from tests.fakes.staged_device import StagedDevice

READS = (
    "item",
    "tolist",
    "cpu",
    "numpy",
    "nonzero",
    "__bool__",
    "__int__",
    "__float__",
    "__index__",
)
"""Methods of a tensor that make the host wait for an accelerator."""
WAITS = {
    "_local_scalar_dense",
    "item",
    "nonzero",
    "equal",
    "is_nonzero",
    "masked_select",
    "lift_fresh",
}
"""Operations that do, or that bring a number of the host to the device."""
NOTHING = {"empty", "empty_like", "empty_strided", "new_empty", "detach", "alias"}
"""Operations that queue no work."""


class RecordingCapturer:
    """Implements Capturer. rehearsals, captures: how many forward passes were so far."""

    def __init__(self) -> None:
        self.rehearsals = self.captures = 0

    @contextmanager
    def rehearsal(self) -> Iterator[Capture]:
        self.rehearsals += 1
        with no_waits():
            yield Rehearsed()

    @contextmanager
    def capture(self) -> Iterator[Capture]:
        recording = Recording()
        with no_waits():
            try:
                yield recording
            finally:
                recording.abandon()
        self.captures += 1


class RefusingCapturer:
    """Implements Capturer: nothing can be captured, so that a model decodes eagerly."""

    @contextmanager
    def rehearsal(self) -> Iterator[Capture]:
        raise RuntimeError("refused")
        yield

    capture = rehearsal


class CapturingDevice(StagedDevice):
    """A device with memory of its own that captures. waits: events that the host waited for."""

    def __init__(self, capturer: Any) -> None:
        super().__init__()
        self.name = "staged:0"
        self.capturer = capturer
        self.waits = 0

    def record(self) -> Event:
        return CountedEvent(self)


class CountedEvent:
    """Work that is done; the device counts who waits for it, but for copies on their own thread."""

    def __init__(self, device: CapturingDevice) -> None:
        self._device = device

    def synchronize(self) -> None:
        self._device.waits += threading.current_thread() is threading.main_thread()

    def query(self) -> bool:
        return True


class Rehearsed:
    """Work that runs as it comes."""

    def begin(self) -> None:
        pass

    def end(self) -> Graph:
        return self

    def replay(self) -> None:
        raise AssertionError("nothing was captured")


class Recording:
    """Implements Capture. All parts share what they make."""

    def __init__(self) -> None:
        self._made: set[int] = set()
        self._part: RecordedPart | None = None

    def begin(self) -> None:
        assert self._part is None, "a part is being captured"
        self._part = RecordedPart(self._made)
        self._part.__enter__()

    def end(self) -> Graph:
        assert self._part is not None, "no part was begun"
        part, self._part = self._part, None
        part.__exit__(None, None, None)
        part.undo()
        return part

    def abandon(self) -> None:
        if self._part is not None:
            self.end()


class RecordedPart(TorchDispatchMode):
    """The operations of one part."""

    def __init__(self, made: set[int]) -> None:
        super().__init__()
        self._made = made  # storages of the capture so far
        self._own: list[torch.Tensor] = []
        self._former: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, named = func._schema.name.removeprefix("aten::"), kwargs or {}
        if name in WAITS:
            raise RuntimeError(f"called a synchronizing operation: {name}")
        given = tensors((args, named))
        if func._schema.is_mutable:
            for tensor in given:
                if storage(tensor) not in self._made:
                    self._former.setdefault(storage(tensor), (tensor, tensor.clone()))
        out = func(*args, **named)
        known = {*map(storage, given)}
        made = [tensor for tensor in tensors(out) if storage(tensor) not in known]
        self._made.update(map(storage, made))
        self._own += made
        if name not in NOTHING and (made or func._schema.is_mutable):
            self.operations.append((func, args, named, out))
        return out

    def undo(self) -> None:
        """Nothing has run."""
        for tensor, former in self._former.values():
            tensor.copy_(former)
        for tensor in self._own:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)

    def replay(self) -> None:
        for func, args, named, out in self.operations:
            again = func(*args, **named)
            if not func._schema.is_mutable:
                for target, found in zip(tensors(out), tensors(again), strict=True):
                    target.copy_(found)


@contextmanager
def no_waits() -> Iterator[None]:
    """Inside the block this thread must not read a tensor."""

    def refusing(name: str) -> Any:
        method, thread = getattr(torch.Tensor, name), threading.current_thread()

        def call(tensor: torch.Tensor, *given: Any, **named: Any) -> Any:
            if threading.current_thread() is thread:
                raise RuntimeError(f"called a synchronizing operation: {name}")
            return method(tensor, *given, **named)

        return call

    with ExitStack() as patches:
        for name in READS:
            patches.enter_context(mock.patch.object(torch.Tensor, name, refusing(name)))
        yield


def tensors(values: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


def storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata

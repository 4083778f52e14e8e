"""A device without a GPU that proves the order of every access to slots, staging and moved rows.

Work runs at once, but counts as done only when something waited for it: each queue (a host thread,
the compute stream, the copy stream of a thread) has a vector clock, each access the time of its
queue, and two accesses to the same bytes, one of them a write, are a race unless a wait puts one
before the other. So a missing event is found whatever the timing was.

What counts as a wait is Device's contract: `wait` and `after` order queues, `synchronize` of an
event tells host threads that its copy's source may be reused. Compute is ordered after a copy only
by `wait`; copies also after whatever any host thread waited for, since the engine's locks order its
threads (they are not checked here).

Compute is seen twice: torch's operations of the thread that watches, and views or addresses of
slots, which native kernels read.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from engine.device.base import Event
from engine.device.cpu import CpuDevice
from engine.experts.slots import Slots
from engine.experts.tiers.disk import ExpertStore

Clock = dict[str, int]
COMPUTE, HOST = "compute", "host"


def learn(clock: Clock, other: Clock) -> None:
    """The clock knows what the other one knows."""
    for queue, time in other.items():
        clock[queue] = max(time, clock.get(queue, 0))


class CheckedEvent:
    """A point in the work of a queue, with what that queue knows there."""

    def __init__(self, device: CheckedDevice, clock: Clock) -> None:
        self._device = device
        self.clock = dict(clock)

    def synchronize(self) -> None:
        self._device.tell_host(self.clock)

    def query(self) -> bool:
        self.synchronize()
        return True


class Memory:
    """One piece of tracked memory, kept so that its addresses are not given out again.

    accesses: (first, end, is a write, queue) -> (time of the queue, place in the code).
    """

    def __init__(self, tensor: torch.Tensor, kind: str) -> None:
        self.keep = tensor
        self.kind = kind
        self.first = tensor.untyped_storage().data_ptr()
        self.end = self.first + tensor.untyped_storage().nbytes()
        self.accesses: dict[tuple[int, int, bool, str], tuple[int, str]] = {}

    def races(
        self, first: int, end: int, write: bool, queue: str, clock: Clock, place: str
    ) -> Iterator[str]:
        """Note one access; yields the earlier ones that it is not ordered after."""
        covered = []
        for key, (time, then) in self.accesses.items():
            begin, stop, wrote, other = key
            if stop <= first or end <= begin:
                continue
            ordered = other == queue or clock.get(other, 0) >= time
            if (wrote or write) and not ordered:
                yield (
                    f"{_verb(write)} on {queue} at {place} is not ordered after the "
                    f"{_verb(wrote)} on {other} at {then} ({self.kind})"
                )
            elif write and first <= begin and stop <= end:
                covered.append(key)
        for key in covered:
            del self.accesses[key]
        self.accesses[first, end, write, queue] = clock.get(queue, 0), place


class CheckedDevice(CpuDevice):
    """Implements Device; `races` holds a sentence for each race that was found."""

    is_host_memory = False

    def __init__(self) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._clocks: dict[str, Clock] = {}
        self._memories: list[Memory] = []
        self.races: list[str] = []
        self.checked = 0
        self.copies = 0

    # Device ------------------------------------------------------------------------------------

    def allocate_arena(self, size_bytes: int) -> torch.Tensor:
        return self._track(super().allocate_arena(size_bytes), "slots")

    def allocate_staging(self, size_bytes: int) -> torch.Tensor:
        return self._track(super().allocate_staging(size_bytes), "host memory")

    def host_view(self, arena: torch.Tensor) -> memoryview | None:
        return None

    def pin(self, pages: torch.Tensor) -> int:
        self._track(pages, "host memory")
        return pages.numel()

    def copy(self, target: torch.Tensor, source: torch.Tensor, after: Event | None) -> Event:
        with self._lock:
            queue = f"copy stream of {threading.current_thread().name}"
            clock = self._clock(queue)
            if isinstance(after, CheckedEvent):
                learn(clock, after.clock)
            learn(clock, self._clock(HOST))
            self._queue(queue)
            if self._memory(target.data_ptr()) is None:
                self._track(target, "moved rows")
            self._note(source, False, queue)
            self._note(target, True, queue)
            self.copies += 1
            event = CheckedEvent(self, clock)
        with _disable_current_modes():
            target.copy_(source)
        return event

    def record(self) -> Event:
        with self._lock:
            return CheckedEvent(self, self._queue(COMPUTE))

    def wait(self, event: Event) -> None:
        assert isinstance(event, CheckedEvent)
        with self._lock:
            learn(self._clock(COMPUTE), event.clock)

    def synchronize(self) -> None:
        with self._lock:
            for clock in list(self._clocks.values()):
                self.tell_host(clock)

    # Clocks and accesses -----------------------------------------------------------------------

    def tell_host(self, clock: Clock) -> None:
        """The calling thread waited for this: it knows, and copies that are queued from now on."""
        with self._lock:
            learn(self._clock(HOST), clock)
            learn(self._clock(threading.current_thread().name), clock)

    def host_access(self, memory: memoryview, write: bool) -> None:
        """Note that a host thread reads or writes this memory itself."""
        address = np.frombuffer(memory, dtype=np.uint8).ctypes.data
        with self._lock:
            clock = self._clock(HOST)
            clock[HOST] = clock.get(HOST, 0) + 1
            self._check(address, memory.nbytes, write, HOST)

    def compute(self, accesses: Sequence[tuple[torch.Tensor, bool]]) -> None:
        """Note one operation of the calling thread: tensors, and whether it writes them.

        If it only touches host memory, it is the thread's own; else it is queued on compute.
        """
        with self._lock:
            touched = [
                (tensor, write, memory)
                for tensor, write in accesses
                if (memory := self._memory(tensor.data_ptr())) is not None
            ]
            if not touched:
                return
            here = len(touched) == len(accesses)
            if here and all(memory.kind == "host memory" for _, _, memory in touched):
                queue = HOST
                time = self._clock(HOST)[HOST] = self._clock(HOST).get(HOST, 0) + 1
                # what this thread queues from now on comes after it
                learn(self._clock(threading.current_thread().name), {HOST: time})
            else:
                queue = COMPUTE
                self._queue(COMPUTE)
            for tensor, write, _ in touched:
                self._note(tensor, write, queue)

    def _clock(self, queue: str) -> Clock:
        return self._clocks.setdefault(queue, {queue: 0})

    def _queue(self, queue: str) -> Clock:
        """Queue one piece of work from this thread: it comes after what the thread knows."""
        clock = self._clock(queue)
        learn(clock, self._clock(threading.current_thread().name))
        clock[queue] += 1
        return clock

    def _note(self, tensor: torch.Tensor, write: bool, queue: str) -> None:
        if tensor.numel():
            strides = zip(tensor.shape, tensor.stride(), strict=True)
            elements = 1 + sum((size - 1) * abs(stride) for size, stride in strides)
            self._check(tensor.data_ptr(), elements * tensor.element_size(), write, queue)

    def _check(self, address: int, size_bytes: int, write: bool, queue: str) -> None:
        memory = self._memory(address)
        if memory is None:
            return
        self.checked += 1
        span = address - memory.first, address - memory.first + size_bytes
        found = memory.races(*span, write, queue, self._clock(queue), _place())
        self.races.extend(one for one in found if one not in self.races)

    def _memory(self, address: int) -> Memory | None:
        return next((one for one in self._memories if one.first <= address < one.end), None)

    def _track(self, tensor: torch.Tensor, kind: str) -> torch.Tensor:
        with self._lock:
            self._memories.append(Memory(tensor, kind))
        return tensor

    # Watching ----------------------------------------------------------------------------------

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Inside the block, compute of this thread and the host's reads into memory are seen."""
        with ExitStack() as watched:
            for owner, name, note in (
                (Slots, "view", self._note_slot),
                (Slots, "address", self._note_slot),
                (Slots, "addresses", self._note_slots),
                (ExpertStore, "read", self._note_read),
            ):
                watched.enter_context(patch.object(owner, name, _noted(getattr(owner, name), note)))
            watched.enter_context(_Operations(self))
            yield

    def _note_slot(self, slots: Slots, slot: int, *_: Any) -> None:
        if slots.device is self:
            self.compute([(slots.bytes_of(slot, 0, slots._sizes[slot]), False)])

    def _note_slots(self, slots: Slots, numbers: Iterable[int]) -> None:
        for slot in numbers:
            self._note_slot(slots, slot)

    def _note_read(self, _: Any, expert: Any, piece: Any, target: memoryview, *__: Any) -> None:
        self.host_access(target, write=True)


class _Operations(TorchDispatchMode):
    """Sees torch's operations: what they write by their schema, and what they read."""

    def __init__(self, device: CheckedDevice) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        given = [*zip(func._schema.arguments, args, strict=False)]
        given += [(one, kwargs[one.name]) for one in func._schema.arguments if one.name in kwargs]
        results = {_storage(one) for one in tree_leaves(out) if isinstance(one, torch.Tensor)}
        accesses = []
        for argument, value in given:
            alias = argument.alias_info
            for tensor in tree_leaves(value):
                if not isinstance(tensor, torch.Tensor):
                    continue
                writes = alias is not None and alias.is_write
                if alias is not None and not writes and _storage(tensor) in results:
                    continue  # a view
                accesses.append((tensor, writes))
        self._device.compute(accesses)
        return out


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _noted(method: Callable[..., Any], note: Callable[..., None]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        note(*arguments)
        return method(*arguments)

    return call


def _verb(write: bool) -> str:
    return "write" if write else "read"


def _place() -> str:
    """The innermost lines of the engine that led here."""
    frame, found = sys._getframe(1), []
    while frame is not None and len(found) < 3:
        file = frame.f_code.co_filename
        if "/engine/" in file and "/tests/" not in file:
            found.append(f"{file.rsplit('/engine/', 1)[-1]}:{frame.f_lineno}")
        frame = frame.f_back  # type: ignore[assignment]
    return " < ".join(found)

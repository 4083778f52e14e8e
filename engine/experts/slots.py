"""Device memory for experts: one arena of slots, each large enough for one record.

A slot is as large as the largest record that its pool may hold.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from engine.device.base import Device, Event
from engine.experts.encoding.codec import MatrixView, RecordFormat, matrix_view, vector_view
from engine.experts.kernels.prequantized import prequantized_view
from engine.policy.pools import Pool
from engine.types import Bits


@dataclass(frozen=True)
class ExpertView:
    """Typed views of one record: matrices and biases by parameter name."""

    bits: Bits
    matrices: dict[str, MatrixView]
    vectors: dict[str, torch.Tensor]


def expert_view(raw: torch.Tensor, record: RecordFormat) -> ExpertView:
    """Views into the bytes of one record, uint8 [at least record bytes]."""
    raw = raw[: record.size_bytes]
    parts = record.parts
    view = matrix_view if record.prequantized is None else prequantized_view
    return ExpertView(
        record.layout.bits,
        {p.name: view(raw, record, p) for p in parts if p.kind == "matrix"},
        {p.name: vector_view(raw, record, p) for p in parts if p.kind == "vector"},
    )


class Slots:
    """The slots of these pools in one preallocated arena. The hot path allocates nothing.

    records: the formats of the run, by bits; slot_bytes: of the largest slot.
    """

    def __init__(
        self, device: Device, records: Mapping[Bits, RecordFormat], pools: Sequence[Pool]
    ) -> None:
        self.device = device
        self.records = dict(records)
        self._sizes: list[int] = []
        for pool in pools:
            size = max(record.size_bytes for bits, record in records.items() if bits in pool.bits)
            self._sizes.extend([size] * pool.slots)
        self.count = len(self._sizes)
        self.slot_bytes = max(self._sizes)
        self._starts = [0, *itertools.accumulate(self._sizes)]
        self._arena: torch.Tensor | None = device.allocate_arena(self._starts[-1])
        self._host = device.host_view(self._arena)
        self._views: dict[tuple[int, Bits], ExpertView] = {}
        self._free_events: dict[int, Event] = {}

    def bytes_of(self, slot: int, start: int, size_bytes: int) -> torch.Tensor:
        """A byte range of a slot on the device, uint8 [size_bytes]."""
        assert self._arena is not None
        first = self._starts[slot] + start
        return self._arena[first : first + size_bytes]

    def host_bytes_of(self, slot: int, start: int, size_bytes: int) -> memoryview | None:
        """The same range as writable host memory; None if the device is not host memory."""
        if self._host is None:
            return None
        first = self._starts[slot] + start
        return self._host[first : first + size_bytes]

    def view(self, slot: int, bits: Bits) -> ExpertView:
        """Typed views of a slot, created once; they follow the slot's bytes."""
        view = self._views.get((slot, bits))
        if view is None:
            view = expert_view(self.bytes_of(slot, 0, self._sizes[slot]), self.records[bits])
            self._views[slot, bits] = view
        return view

    @property
    def total_bytes(self) -> int:
        """Bytes of all slots."""
        return self._starts[-1]

    def address(self, slot: int) -> int:
        """The address of a slot's first byte in the device's memory."""
        assert self._arena is not None
        return self._arena.data_ptr() + self._starts[slot]

    @property
    def arena(self) -> torch.Tensor:
        """The memory of all slots, uint8."""
        assert self._arena is not None
        return self._arena

    def addresses(self, slots: Iterable[int]) -> list[int]:
        """The address of each slot's first byte in the device's memory."""
        base, starts = self.arena.data_ptr(), self._starts
        return [base + starts[slot] for slot in slots]

    def give_back(self, slot: int) -> None:
        """Return the memory of a slot that is empty and will not be used for a while."""
        self.device.give_back(self.bytes_of(slot, 0, self._sizes[slot]))

    def mark_used(self, slots: Sequence[int]) -> None:
        """Note that compute reading these slots was queued: a later copy into one of them waits for
        it."""
        self._free_events.update(dict.fromkeys(slots, self.device.record()))

    def free_event(self, slot: int) -> Event | None:
        """The event after the last queued compute on this slot."""
        return self._free_events.get(slot)

    def close(self) -> None:
        """Drop every view and release the arena."""
        self._views.clear()
        self._free_events.clear()
        if self._host is not None:
            self._host.release()
            self._host = None
        if self._arena is not None:
            self.device.release_arena(self._arena)
            self._arena = None

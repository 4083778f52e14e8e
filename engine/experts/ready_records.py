"""Where compute may read records without asking: the address of each that has arrived."""

from __future__ import annotations

import ctypes

from engine.types import ExpertId


class ReadyRecords:
    """Addresses of records of one precision in host memory, by layer and expert; 0: not there.

    An entry is added once the record has arrived and the policy has passed it on to compute, and
    dropped before anything is written to its slot.
    """

    def __init__(self, layers: int, experts: int) -> None:
        self.experts = experts
        self._addresses = (ctypes.c_uint64 * (layers * experts))()

    @property
    def place(self) -> int:
        """The address of the table, uint64 [L, E]."""
        return ctypes.addressof(self._addresses)

    def add(self, expert: ExpertId, address: int) -> None:
        """The record lies at this address."""
        self._addresses[expert.layer * self.experts + expert.expert] = address

    def drop(self, expert: ExpertId) -> None:
        """The record is gone, or about to be."""
        self._addresses[expert.layer * self.experts + expert.expert] = 0

    def has(self, expert: ExpertId) -> bool:
        """Whether the record is there."""
        return self._addresses[expert.layer * self.experts + expert.expert] != 0

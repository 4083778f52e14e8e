"""Small tables of numbers on their way to an accelerator, from pinned memory, without waiting."""

from __future__ import annotations

import torch

from engine.device.base import Device

_TABLES = 8  # allocated at a time


class PinnedTables:
    """Tables of int64 in pinned host memory, each written once between two calls of `begin`."""

    def __init__(self, device: Device, numbers: int) -> None:
        """numbers: of a table."""
        self._device = device
        self._numbers = numbers
        self._tables: list[torch.Tensor] = []
        self._used = 0

    def begin(self) -> None:
        """The copies of all tables are done: the caller has waited for work queued after them."""
        self._used = 0

    def next(self) -> torch.Tensor:
        """A table to write and to copy, int64 [numbers], with what it held before."""
        if self._used == len(self._tables):
            block = self._device.allocate_staging(_TABLES * self._numbers * 8)
            self._tables.extend(block.view(torch.int64).view(_TABLES, self._numbers))
        self._used += 1
        return self._tables[self._used - 1]

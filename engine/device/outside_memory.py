"""What this process holds on an accelerator, read from outside torch's allocator.

The first of three readings that there is: the driver's count for this process; how much the card's
used memory grew since just before this process came, which includes what other programs took or
gave back meanwhile; torch's reserved memory and the context.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from engine.facts.card_memory import CONTEXT_BYTES, CardMemory


class OutsideMemory:
    """Reads one accelerator of this process.

    make_context: gives this process its context on the device; called once. context_bytes: what
    that took by the driver's count, None if nothing counts it.
    """

    def __init__(self, device: torch.device, make_context: Callable[[], None]) -> None:
        self._device = device
        uuid = card_uuid(device)
        self._card = None if uuid is None else CardMemory(uuid)
        before = self._card.used_bytes() if self._card else None
        make_context()
        reserved = torch.accelerator.memory_reserved(device)
        if self._card is not None:
            self._card.find_process()
        self._by_driver = before is not None
        after, own = self._used_bytes(), self._own_bytes(reserved)
        context = own - reserved if own is not None else None
        if context is None and before is not None and after is not None:
            context = after - before - reserved
        self.context_bytes = context if context is not None and context > 0 else None
        self._others_bytes = None if after is None else after - reserved - self.planned_context

    @property
    def planned_context(self) -> int:
        """Bytes of the context: measured, else CONTEXT_BYTES."""
        return CONTEXT_BYTES if self.context_bytes is None else self.context_bytes

    def own_context(self) -> int:
        """Bytes of the context now, with the kernels that were loaded since, if the driver counts
        this process; else as planned."""
        reserved = torch.accelerator.memory_reserved(self._device)
        own = self._own_bytes(reserved)
        return self.planned_context if own is None else own - reserved

    def beside_torch(self) -> tuple[int, str]:
        """Bytes that this process holds now beside what torch reserved, and how they are known.

        They are the context, which grows with the kernels that are loaded, and libraries' own
        memory: none of it is given back while the process lives, so that the latest figure is the
        highest.
        """
        reserved = torch.accelerator.memory_reserved(self._device)
        own = self._own_bytes(reserved)
        if own is not None:
            return own - reserved, "rest of this process by NVML"
        assumed = ", context assumed" if self.context_bytes is None else ""
        used = self._used_bytes()
        if used is None or self._others_bytes is None:
            return self.planned_context, f"context{assumed}"
        grown = used - self._others_bytes - reserved
        return max(self.planned_context, grown), f"rest of the card's growth{assumed}"

    def _own_bytes(self, reserved_bytes: int) -> int | None:
        return self._card.process_bytes(reserved_bytes) if self._card else None

    def _used_bytes(self) -> int | None:
        """Used memory of the whole card, always counted by the same: its driver, else torch."""
        if self._card is not None and self._by_driver:
            return self._card.used_bytes()
        found = memory_info(self._device)
        return None if found is None else found[1] - found[0]


def memory_info(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of the device by torch, None if this torch cannot say."""
    module = torch.get_device_module(device)
    for owner, name in ((torch.accelerator, "get_memory_info"), (module, "mem_get_info")):
        if hasattr(owner, name):
            free, total = getattr(owner, name)(device)
            return int(free), int(total)
    return None


def card_of(device: torch.device) -> str:
    """The card's UUID, by which commands take turns on it; its name where nothing tells one."""
    return card_uuid(device) or str(device)


def card_uuid(device: torch.device) -> str | None:
    """The UUID of a CUDA device without its prefix, None for others. Makes no context."""
    if device.type != "cuda":
        return None
    found = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return None if found is None else str(found)

"""The host tiers of an engine, one for each precision, kept over its configurations.

In: the stores of a configuration and the bytes of host memory that it may take. Out: filled tiers.
What the next configuration reads too stays where it is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.device.base import Device
from engine.errors import InfeasibleError
from engine.experts.encoding.codec import RecordFormat
from engine.experts.tiers.disk import ExpertStore
from engine.experts.tiers.host import HostTier
from engine.facts.memory_limit import usable_memory
from engine.memory.host import FREE_FRACTION, held_records
from engine.types import Bits, format_bytes

Progress = Callable[[str, int, int], None]
_Key = tuple[RecordFormat, tuple[Path, ...], int]


class HostTiers:
    """Opens and keeps host tiers. free_bytes: the memory that this machine has left."""

    def __init__(
        self, device: Device, free_bytes: Callable[[], int] = lambda: usable_memory()[1]
    ) -> None:
        self._device = device
        self._free_bytes = free_bytes
        self._kept: dict[_Key, HostTier] = {}
        self.notes: tuple[str, ...] = ()

    def open(
        self,
        stores: Mapping[Bits, ExpertStore],
        shares: Mapping[Bits, int],
        *,
        is_granted: bool,
        threads: int,
        progress: Progress | None = None,
    ) -> dict[Bits, HostTier]:
        """Filled tiers for the stores whose share holds enough records to work with.

        shares: bytes by bits; is_granted: whether a RAM budget allows them, otherwise they are cut
        to FREE_FRACTION of the free memory; threads: that read. Raises InfeasibleError if the
        system refuses the memory.
        """
        if self._device.is_host_memory:
            return {}
        wanted = sum(min(shares.get(bits, 0), one.all_bytes) for bits, one in stores.items())
        held = sum(tier.size_bytes for tier in self._kept.values())
        most = wanted if is_granted else int(FREE_FRACTION * (self._free_bytes() + held))
        keys: dict[Bits, _Key] = {}
        for bits, store in stores.items():
            share = shares.get(bits, 0) * min(most, wanted) // max(1, wanted)
            count = held_records(share, store.record.size_bytes, len(store.experts), threads)
            if count:
                keys[bits] = (store.record, tuple(store.files), count)
        for key in [key for key in self._kept if key not in keys.values()]:
            self._kept.pop(key).close()
        tiers = {bits: self._tier(stores[bits], key) for bits, key in keys.items()}
        self._fill(tiers, threads, progress)
        self.notes = (*_cut_note(tiers, wanted, most), *_pinned_note(tiers))
        return tiers

    def close(self) -> None:
        """Free all tiers."""
        for tier in self._kept.values():
            tier.close()
        self._kept.clear()

    def _tier(self, store: ExpertStore, key: _Key) -> HostTier:
        kept = self._kept.get(key)
        if kept is not None:
            kept.attach(store)
            return kept
        size_bytes = key[2] * store.record.size_bytes
        try:
            made = self._kept[key] = HostTier(store, self._device, size_bytes)
        except MemoryError:
            raise InfeasibleError(
                f"this machine cannot give {format_bytes(size_bytes)} of memory for the host tier: "
                "lower host.bytes or --ram"
            ) from None
        return made

    def _fill(
        self, tiers: Mapping[Bits, HostTier], threads: int, progress: Progress | None
    ) -> None:
        total = sum(tier.size_bytes for tier in tiers.values())
        done = 0
        lock = threading.Lock()

        def read(size_bytes: int) -> None:
            nonlocal done
            with lock:
                done += size_bytes
                if progress is not None:
                    progress("fill", done, total)

        for tier in tiers.values():
            tier.fill(threads, read)


def _cut_note(tiers: Mapping[Bits, HostTier], wanted: int, most: int) -> tuple[str, ...]:
    held = sum(tier.size_bytes for tier in tiers.values())
    if most >= wanted:
        return ()
    return (
        f"the host tier holds {format_bytes(held)} of the {format_bytes(wanted)} that it could: "
        f"{FREE_FRACTION:.0%} of the memory that is free; give --ram to allow more",
    )


def _pinned_note(tiers: Mapping[Bits, HostTier]) -> tuple[str, ...]:
    held = sum(tier.size_bytes for tier in tiers.values())
    pinned = sum(tier.pinned_bytes for tier in tiers.values())
    if pinned >= held:
        return ()
    return (
        f"{format_bytes(pinned)} of the {format_bytes(held)} of the host tier are pinned, since "
        "the system allows no more: copies from the rest are slower (`ulimit -l`; WSL has a limit)",
    )

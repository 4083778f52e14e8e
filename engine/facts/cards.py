"""The NVIDIA cards of this machine, through NVML, and how CUDA numbers them.

A machine without a driver has none. A value that a driver does not report, or reports as garbage
(as some do under WSL2), is None.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import pynvml

T = TypeVar("T")
_MOST = 1 << 50  # bytes, watts, clocks: NVML writes values near 2^32 or 2^64 for "not available"
_CODES = 1 << 32
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # NVML's numbers


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. index: NVML's, in the order of PCI buses; a value is None if the driver does
    not report it.

    process_bytes: memory that this process holds on it, the CUDA context included.
    """

    index: int
    name: str
    uuid: str | None
    total_bytes: int | None
    free_bytes: int | None
    pcie_generation: int | None
    pcie_width: int | None
    power_w: float | None
    power_limit_w: float | None
    clock_mhz: int | None
    memory_clock_mhz: int | None
    process_bytes: int | None


def read_cards() -> tuple[str | None, tuple[Gpu, ...]]:
    """The driver's version and all cards; (None, ()) without a driver. Never raises."""
    if ask_driver(lambda: pynvml.nvmlInit() or True) is None:
        return None, ()
    try:
        count = plausible(ask_driver(pynvml.nvmlDeviceGetCount), most=1024) or 0
        cards = [_read_card(index) for index in range(count)]
        driver = _text(ask_driver(pynvml.nvmlSystemGetDriverVersion))
        return driver, tuple(card for card in cards if card is not None)
    finally:
        ask_driver(pynvml.nvmlShutdown)


def cuda_order(
    names: Sequence[str], uuids: Sequence[str | None], environment: Mapping[str, str]
) -> list[int | None]:
    """NVML's index of cuda:0, cuda:1 and so on; None where CUDA's choice cannot be known from here.

    names, uuids: of all cards by NVML's index; environment: CUDA_VISIBLE_DEVICES hides and orders
    cards, by number or by the beginning of a UUID, and an entry that is not valid ends its list.
    Numbers mean the order of PCI buses only with CUDA_DEVICE_ORDER=PCI_BUS_ID or among equal cards;
    by default CUDA puts the fastest first. A MIG slice is no whole card: None.
    """
    by_bus = environment.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID" or len(set(names)) <= 1
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [index if by_bus else None for index in range(len(names))]
    found: list[int | None] = []
    for word in (part.strip() for part in visible.split(",")):
        if word.isdecimal() and int(word) < len(names):
            found.append(int(word) if by_bus else None)
        elif word.startswith("MIG-"):
            found.append(None)
        else:
            same = [n for n, uuid in enumerate(uuids) if uuid and word and uuid.startswith(word)]
            if len(same) != 1:
                break
            found.append(same[0])
    return found


def _read_card(index: int) -> Gpu | None:
    device = ask_driver(lambda: pynvml.nvmlDeviceGetHandleByIndex(index))
    if device is None:
        return None

    def read(name: str, *arguments: Any) -> Any:
        return ask_driver(lambda: getattr(pynvml, name)(device, *arguments))

    memory = read("nvmlDeviceGetMemoryInfo")
    total = plausible(getattr(memory, "total", None))
    free = plausible(getattr(memory, "free", None))
    power_mw = plausible(read("nvmlDeviceGetPowerUsage"), most=_CODES - 1)
    limit_mw = plausible(read("nvmlDeviceGetEnforcedPowerLimit"), most=_CODES - 1)
    return Gpu(
        index=index,
        name=_text(read("nvmlDeviceGetName")) or "unnamed GPU",
        uuid=_text(read("nvmlDeviceGetUUID")),
        total_bytes=total or None,
        free_bytes=None if not total or free is None or free > total else free,
        pcie_generation=plausible(read("nvmlDeviceGetCurrPcieLinkGeneration"), most=32),
        pcie_width=plausible(read("nvmlDeviceGetCurrPcieLinkWidth"), most=64),
        power_w=None if power_mw is None else power_mw / 1000,
        power_limit_w=None if limit_mw is None else limit_mw / 1000,
        clock_mhz=plausible(read("nvmlDeviceGetClockInfo", _SM_CLOCK), most=_CODES - 1),
        memory_clock_mhz=plausible(read("nvmlDeviceGetClockInfo", _MEMORY_CLOCK), most=_CODES - 1),
        process_bytes=_process_bytes(read("nvmlDeviceGetComputeRunningProcesses")),
    )


def _process_bytes(processes: Any) -> int | None:
    """Bytes used by this process: 0 if the driver lists others only, None if it lists nothing."""
    if not isinstance(processes, list):
        return None
    for process in processes:
        if getattr(process, "pid", None) == os.getpid():
            return plausible(getattr(process, "usedGpuMemory", None))
    return 0


def ask_driver(call: Callable[[], T]) -> T | None:
    """The value, or None if this driver or card does not report it, or not as text and numbers."""
    try:
        return call()
    except Exception:  # noqa: BLE001 (whatever a driver and its binding do: no card is worth a run)
        return None


def plausible(value: Any, most: int = _MOST) -> int | None:
    """A number that a card can have, else None."""
    return int(value) if isinstance(value, int) and 0 <= value < most else None


def _text(value: Any) -> str | None:
    """Text without what cannot be shown; None if nothing is left."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return None
    return "".join(one for one in value if one.isprintable() and one != "\ufffd").strip() or None

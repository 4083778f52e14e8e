"""Opens devices by name."""

from __future__ import annotations

import torch

from engine.device.accelerator import AcceleratorDevice, find_accelerator, usable_accelerator
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.emulated import EmulatedDevice
from engine.device.outside_memory import card_of
from engine.facts.emulated_machine import PREFIX, load_machine


def open_device(name: str) -> Device:
    """Open a device by name: `auto` (the accelerator if there is one, else the CPU), `cpu`,
    `emulated:<machine>` or a torch device name."""
    if name.startswith(PREFIX):
        return EmulatedDevice(load_machine(name.removeprefix(PREFIX)))
    name = device_name(name)
    return CpuDevice() if name == "cpu" else AcceleratorDevice(name)


def device_name(name: str) -> str:
    """The name of the device that open_device opens, without opening it: no context on a card.

    Raises UsageError if there is no such device here.
    """
    if name.startswith(PREFIX):
        return f"{PREFIX}{load_machine(name.removeprefix(PREFIX)).name}"
    if name == "auto":
        current = usable_accelerator()
        name = "cpu" if current is None else str(current)
    return name if name == "cpu" else str(find_accelerator(name))


def named_card(name: str) -> str | None:
    """The card behind a name that device_name gave, as Device.card; None on host memory."""
    here = name == "cpu" or name.startswith(PREFIX)
    return None if here else card_of(torch.device(name))

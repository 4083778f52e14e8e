"""Opens devices by name."""

from __future__ import annotations

from engine.device.accelerator import AcceleratorDevice, usable_accelerator
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.emulated import EmulatedDevice
from engine.facts.emulated_machine import PREFIX, load_machine


def open_device(name: str) -> Device:
    """Open a device by name: `auto` (the accelerator if there is one, else the CPU), `cpu`,
    `emulated:<machine>` or a torch device name."""
    if name == "auto":
        current = usable_accelerator()
        name = "cpu" if current is None else str(current)
    if name.startswith(PREFIX):
        return EmulatedDevice(load_machine(name.removeprefix(PREFIX)))
    return CpuDevice() if name == "cpu" else AcceleratorDevice(name)

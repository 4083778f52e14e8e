"""Opens devices by name."""

from __future__ import annotations

import torch

from engine.device.accelerator import AcceleratorDevice
from engine.device.base import Device
from engine.device.cpu import CpuDevice
from engine.device.emulated import EmulatedDevice
from engine.facts.emulated_machine import PREFIX, load_machine


def open_device(name: str) -> Device:
    """Open a device by name: `auto` (the accelerator if there is one, else the CPU), `cpu`,
    `emulated:<machine>` or a torch device name."""
    if name == "auto":
        current = torch.accelerator.current_accelerator()
        name = str(current) if current is not None else "cpu"
    if name.startswith(PREFIX):
        return EmulatedDevice(load_machine(name.removeprefix(PREFIX)))
    return CpuDevice() if name == "cpu" else AcceleratorDevice(name)

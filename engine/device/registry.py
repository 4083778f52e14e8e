"""Devices by name."""

from __future__ import annotations

import torch

from engine.device.accelerator import AcceleratorDevice
from engine.device.base import Device
from engine.device.cpu import CpuDevice


def open_device(name: str) -> Device:
    """`auto` (the accelerator where there is one, else the CPU), `cpu`, or a torch device name."""
    if name == "auto":
        current = torch.accelerator.current_accelerator()
        name = str(current) if current is not None else "cpu"
    return CpuDevice() if name == "cpu" else AcceleratorDevice(name)

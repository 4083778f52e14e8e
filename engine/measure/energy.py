"""Energy of a run, if there is a counter: NVML's of the card in use, else RAPL's CPU packages.

A counter covers its whole card or packages, other processes included. If there is none, or it does
not move, no energy is reported. The folder and the card are parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pynvml
import torch

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter(Protocol):
    """Counts energy. source: the name of the counter."""

    source: str

    def joules(self) -> float:
        """Joules since the meter was opened."""


class RaplMeter:
    """Sums all packages. Read it more often than a counter wraps around (minutes at full power)."""

    source = "RAPL, all CPU packages"

    def __init__(self, packages: Sequence[Path]) -> None:
        self._packages = packages
        self._ranges_uj = [_read_uj(package / "max_energy_range_uj") for package in packages]
        self._last_uj = self._read()
        self._total_uj = 0

    def joules(self) -> float:
        """Joules since the meter was opened."""
        now_uj = self._read()
        for now, last, span in zip(now_uj, self._last_uj, self._ranges_uj, strict=True):
            self._total_uj += now - last if now >= last else now - last + span
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def _read(self) -> list[int]:
        return [_read_uj(package / "energy_uj") for package in self._packages]


class NvmlMeter:
    """One card's total energy. Raises NVMLError if there is no driver, card or counter.

    uuid: `GPU-...`, which unlike an index does not depend on CUDA_VISIBLE_DEVICES.
    """

    source = "NVML, the whole card"

    def __init__(self, uuid: str) -> None:
        pynvml.nvmlInit()
        self._card = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        self._first_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._card)

    def joules(self) -> float:
        """Joules since the meter was opened."""
        now_mj = pynvml.nvmlDeviceGetTotalEnergyConsumption(self._card)
        return float(now_mj - self._first_mj) / 1e3


def open_energy_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter | None:
    """The meter of the compute device: a CUDA card's own, the CPU's packages, or None."""
    if device.type == "cuda":
        return open_nvml_meter(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
    return open_rapl_meter(powercap) if device.type == "cpu" else None


def open_nvml_meter(uuid: str) -> NvmlMeter | None:
    """The card's meter, None if its driver counts no energy."""
    try:
        return NvmlMeter(uuid)
    except pynvml.NVMLError:
        return None


def open_rapl_meter(powercap: Path = POWERCAP) -> RaplMeter | None:
    """The meter of all packages, None if there are none or they may not be read."""
    try:
        packages = [
            zone
            for zone in sorted(powercap.glob("intel-rapl:*"))
            if (zone / "name")
            .read_text(encoding="utf-8")
            .startswith("package")  # neither subzones nor psys
        ]
        return RaplMeter(packages) if packages else None
    except (OSError, ValueError):
        return None


def _read_uj(file: Path) -> int:
    return int(file.read_text(encoding="utf-8"))

"""Machines that are not here, as figures: what the emulated device and the replay read.

A profile is a YAML of published figures. The emulated device slows all of them down by one stated
factor, chosen so that this machine's core reads weights as fast as the slowed device would (decode
is bound by bytes a second); ratios between compute, link and host memory are then the profile's.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UsageError
from engine.types import parse_size_bytes

PREFIX = "emulated:"


@dataclass(frozen=True)
class EmulatedMachine:
    """One machine. All figures are the real machine's; slow_down divides every speed.

    name, description, sources: for people; device_bytes: memory of the device;
    device_bytes_per_s: its memory bandwidth; device_flops: dense 16-bit; link_bytes_per_s,
    link_latency_s: host to device, one direction; host_bytes_per_s: host memory;
    disk_bytes_per_s: reads.
    """

    name: str
    description: str
    sources: str
    device_bytes: int
    device_bytes_per_s: float
    device_flops: float
    link_bytes_per_s: float
    link_latency_s: float
    host_bytes_per_s: float
    disk_bytes_per_s: float
    slow_down: float

    @property
    def slowed_link_bytes_per_s(self) -> float:
        """As the emulated device runs it."""
        return self.link_bytes_per_s / self.slow_down

    @property
    def slowed_link_latency_s(self) -> float:
        """As the emulated device runs it."""
        return self.link_latency_s * self.slow_down

    @property
    def slowed_host_bytes_per_s(self) -> float:
        """As the emulated device runs it."""
        return self.host_bytes_per_s / self.slow_down


def machine_folder() -> Path:
    """Where the profiles lie: `studies/hardware/`, or under EXPERTUNE_STUDIES."""
    source = Path(__file__).resolve().parent.parent / "studies"
    return Path(os.environ.get("EXPERTUNE_STUDIES", source)) / "hardware"


def machine_names() -> tuple[str, ...]:
    """The profiles of this installation."""
    return tuple(sorted(path.stem for path in machine_folder().glob("*.yaml")))


def load_machine(name: str) -> EmulatedMachine:
    """A profile by name, or by the path of its YAML. UsageError with what is wrong."""
    path = Path(name) if name.endswith(".yaml") else machine_folder() / f"{name}.yaml"
    if not path.is_file():
        names = machine_names()
        nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)
        hint = f"; the nearest is '{nearest[0]}'" if nearest else ""
        raise UsageError(f"there is no machine '{name}'{hint} (there are: {', '.join(names)})")
    try:
        data = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}") from None
    fields = {field.name: field.type for field in dataclasses.fields(EmulatedMachine)}
    given = dict(data) if isinstance(data, dict) else {}
    unknown = sorted(set(given) - set(fields))
    missing = sorted(set(fields) - set(given))
    if unknown or missing:
        raise UsageError(f"{path}: unknown keys {unknown}, missing keys {missing}")
    values: dict[str, Any] = {}
    for key, kind in fields.items():
        value = given[key]
        try:
            if kind == "str":
                values[key] = str(value)
            elif kind == "int":
                values[key] = parse_size_bytes(value)
            else:
                values[key] = float(value)
                if values[key] <= 0:
                    raise ValueError("must be above zero")
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}: {key} = {value!r}: {error}") from None
    return EmulatedMachine(**values)

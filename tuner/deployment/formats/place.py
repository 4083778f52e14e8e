"""What kind of device a config was measured on, which decides what other programs are told."""

from __future__ import annotations

from typing import Literal

from engine.config.settings import EngineConfig
from engine.facts.emulated_machine import PREFIX

Place = Literal["host", "emulated", "accelerator"]


def place_of(config: EngineConfig) -> Place:
    """host: the CPU, whose slots lie in RAM; emulated: RAM that plays an accelerator's part."""
    name = config.device.name
    if name.startswith(PREFIX):
        return "emulated"
    return "host" if name in ("cpu", "auto") else "accelerator"


def slots_bytes(config: EngineConfig) -> int:
    """What the expert slots of a resolved config take."""
    wanted = config.cache.expert_bytes
    assert isinstance(wanted, int), "a deployment is resolved"
    return wanted

"""The kind of device that a config was measured on, which decides how other programs are
configured."""

from __future__ import annotations

from typing import Literal

from engine.config.settings import EngineConfig
from engine.facts.emulated_machine import PREFIX

Place = Literal["host", "emulated", "accelerator"]


def place_of(config: EngineConfig) -> Place:
    """host: the CPU, whose slots are in RAM; emulated: RAM that emulates an accelerator."""
    name = config.device.name
    if name.startswith(PREFIX):
        return "emulated"
    return "host" if name in ("cpu", "auto") else "accelerator"


def slots_bytes(config: EngineConfig) -> int:
    """The bytes of the expert slots of a resolved config."""
    wanted = config.cache.expert_bytes
    assert isinstance(wanted, int), "a deployment is resolved"
    return wanted

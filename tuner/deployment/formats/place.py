"""The kind of device that a config was measured on, which decides how other programs are
configured."""

from __future__ import annotations

from typing import Literal

from engine.config.settings import EngineConfig
from engine.facts.emulated_machine import PREFIX
from tuner.errors import ExportError

Place = Literal["host", "emulated", "accelerator"]


def place_of(config: EngineConfig) -> Place:
    """host: the CPU, whose slots are in RAM; emulated: RAM that emulates an accelerator.

    Raises ExportError for `auto`, which is another device on every machine.
    """
    name = config.device.name
    if name == "auto":
        raise ExportError(
            "device.name is auto, which does not say what the config was measured on: write cpu, "
            "cuda:0 or what it was"
        )
    if name.startswith(PREFIX):
        return "emulated"
    return "host" if name == "cpu" else "accelerator"


def slots_bytes(config: EngineConfig) -> int:
    """The bytes of the expert slots of a resolved config."""
    wanted = config.cache.expert_bytes
    assert isinstance(wanted, int), "a deployment is resolved"
    return wanted

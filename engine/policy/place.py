"""Where an expert's tokens are computed."""

from __future__ import annotations

from typing import Literal, Protocol

from engine.types import ExpertId

Place = Literal["device", "host"]


class Placement(Protocol):
    """Chooses between moving weights to the device and computing beside them on the host."""

    def place(self, expert: ExpertId, tokens: int, *, resident: bool) -> Place:
        """Where to compute `tokens` tokens of this expert."""


class DevicePlacement:
    """Everything on the device."""

    def place(self, expert: ExpertId, tokens: int, *, resident: bool) -> Place:
        """Always the device."""
        return "device"

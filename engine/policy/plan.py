"""Who chooses micro-batches and prefetch depth before a run."""

from __future__ import annotations

from typing import Protocol

from engine.config import EngineConfig
from engine.protocol import MachineProfile


class Plan(Protocol):
    """Adjusts a config to a measured machine."""

    def plan(self, config: EngineConfig, profile: MachineProfile | None) -> EngineConfig:
        """The config to run."""


class FixedPlan:
    """What the config says."""

    def plan(self, config: EngineConfig, profile: MachineProfile | None) -> EngineConfig:
        """Unchanged."""
        return config

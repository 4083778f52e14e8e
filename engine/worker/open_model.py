"""Opens an engine from a model's name, and describes it for the tuner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.device.registry import open_device
from engine.facts.machine import probe
from engine.model.description import check_description
from engine.model.hub import locate
from engine.run.engine import Engine


@dataclass(frozen=True)
class Opened:
    """An open engine. runtime_bytes: memory of the process without a model."""

    engine: Engine
    runtime_bytes: int

    def to_json(self, cache_folder: Path) -> dict[str, Any]:
        """The answer to `open`."""
        return {
            "facts": self.engine.facts.to_json(),
            "hardware": probe(cache_folder).to_json(),
            "runtime_bytes": self.runtime_bytes,
            "device": self.engine.device.name,
            "context_bytes": self.engine.device.context_bytes,
            "decodes_together": self.engine.passes.together,
            "card": self.engine.device.card,
        }


def open_engine(
    model: str,
    device: str,
    cache_folder: Path,
    *,
    trust_remote_code: bool,
    revision: str | None,
    settle: Callable[[], int],
) -> Opened:
    """Load a model's non-expert weights; its experts stay on disk. A hub id is fetched first.

    settle: brings the process to its baseline and returns its bytes. Raises ModelError if the model
    cannot be run.
    """
    location = locate(
        model,
        revision,
        check=lambda folder: check_description(folder, trust_remote_code=trust_remote_code),
    )
    runtime_bytes = settle()
    engine = Engine(
        location.folder,
        open_device(device),
        cache_folder,
        model_id=model,
        revision=location.revision,
        trust_remote_code=trust_remote_code,
    )
    return Opened(engine, runtime_bytes)

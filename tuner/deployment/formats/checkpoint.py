"""Where a deployment's checkpoint is: a folder of the machine that measured, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass

from engine.facts.model import ModelFacts
from tuner.deployment.document import Deployment

LOCAL = "local"  # the revision of a folder


@dataclass(frozen=True)
class CheckpointSource:
    """name: what a file made of it is called; exactly one of folder and hub_id is set."""

    name: str
    folder: str | None
    hub_id: str | None
    revision: str


def checkpoint_source(deployment: Deployment, facts: ModelFacts) -> CheckpointSource:
    """From a deployment and the facts that its study was run on."""
    model = deployment.model
    name = model.id.rstrip("/").rpartition("/")[2]
    if model.revision == LOCAL:
        return CheckpointSource(name, facts.path, None, model.revision)
    return CheckpointSource(name, None, model.id, model.revision)

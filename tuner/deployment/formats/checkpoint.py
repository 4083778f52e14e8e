"""Locates a deployment's checkpoint: a folder of the measuring machine, or a hub id."""

from __future__ import annotations

from dataclasses import dataclass

from engine.facts.model import ModelFacts
from tuner.deployment.document import Deployment

LOCAL = "local"  # the revision of a folder


@dataclass(frozen=True)
class CheckpointSource:
    """A checkpoint's location. name: of files made from it; exactly one of folder and hub_id is
    set."""

    name: str
    folder: str | None
    hub_id: str | None
    revision: str


def checkpoint_source(deployment: Deployment, facts: ModelFacts) -> CheckpointSource:
    """The source for a deployment and the facts of its study's model."""
    model = deployment.model
    name = model.id.rstrip("/").rpartition("/")[2]
    if model.revision == LOCAL:
        return CheckpointSource(name, facts.path, None, model.revision)
    return CheckpointSource(name, None, model.id, model.revision)

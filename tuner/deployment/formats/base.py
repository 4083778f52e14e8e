"""What a format is: how a deployment becomes its text, and what its files are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.facts.model import ModelFacts
from tuner.deployment.document import Deployment

Renderer = Callable[[Deployment, ModelFacts], str]


@dataclass(frozen=True)
class Format:
    """suffix: of its files, with the dot; mime: as HTTP names it; title: what it is for."""

    render: Renderer
    suffix: str
    mime: str
    title: str

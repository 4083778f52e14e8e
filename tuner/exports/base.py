"""What a format is: how a deployment becomes its text, and what its files are called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.protocol import ModelFacts
from tuner.deployment import Deployment

Renderer = Callable[[Deployment, ModelFacts], str]


@dataclass(frozen=True)
class Format:
    """suffix: of its files, with the dot; mime: as HTTP names it."""

    render: Renderer
    suffix: str
    mime: str

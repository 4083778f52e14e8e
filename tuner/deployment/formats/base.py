"""An export format: renders a deployment as text, and names its files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from engine.facts.model import ModelFacts
from tuner.deployment.document import Deployment

Renderer = Callable[[Deployment, ModelFacts], str]


@dataclass(frozen=True)
class Format:
    """An export format. suffix: of its files, with the dot; mime: its media type; title: its
    purpose."""

    render: Renderer
    suffix: str
    mime: str
    title: str

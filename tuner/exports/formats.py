"""FORMATS: every format that `tune export --format` and the dashboard offer, by name."""

from __future__ import annotations

from engine.protocol import ModelFacts
from tuner.deployment import Deployment, dump_deployment
from tuner.exports.base import Format


def render_yaml(deployment: Deployment, facts: ModelFacts) -> str:
    """What `tune run`, `deploy` and `verify` read; the facts are not needed."""
    return dump_deployment(deployment)


FORMATS: dict[str, Format] = {
    "yaml": Format(render_yaml, ".yaml", "application/yaml", "for tune run, deploy and verify"),
}

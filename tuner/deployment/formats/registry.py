"""FORMATS: all formats of `tune export --format` and of the dashboard, by name."""

from __future__ import annotations

from engine.facts.model import ModelFacts
from tuner.deployment.document import Deployment, dump_deployment
from tuner.deployment.formats.base import Format
from tuner.deployment.formats.kubernetes import render_kubernetes
from tuner.deployment.formats.llama_cpp import render_llama_cpp
from tuner.deployment.formats.vllm import render_vllm


def render_yaml(deployment: Deployment, facts: ModelFacts) -> str:
    """Renders the YAML for `tune run`, `deploy` and `verify`; the facts are not needed."""
    return dump_deployment(deployment)


FORMATS: dict[str, Format] = {
    "yaml": Format(render_yaml, ".yaml", "application/yaml", "for tune run, deploy and verify"),
    "llama.cpp": Format(
        render_llama_cpp, ".sh", "text/x-shellscript", "converts, quantizes and serves"
    ),
    "vllm": Format(render_vllm, ".sh", "text/x-shellscript", "serves the same checkpoint"),
    "kubernetes": Format(
        render_kubernetes, ".yaml", "application/yaml", "the YAML and a pod that serves it"
    ),
}

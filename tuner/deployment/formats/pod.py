"""Builds the pod that serves a config: its command, probes, memory and restrictions."""

from __future__ import annotations

import math
from typing import Any

from engine.facts.model import ModelFacts
from engine.memory.kv import one_memory
from tuner.deployment.document import Deployment
from tuner.deployment.formats.checkpoint import CheckpointSource
from tuner.deployment.formats.place import place_of

PORT = 8000
CONFIG = "/etc/expertune"
DATA = "/data"
USER = 10001  # as in the Dockerfile
DRAIN_S = 60
# The engine's process before it opens a model took 536 MB and the command beside it 107 MB (demo
# model, CPU build of torch); the rest is reserved for tokenizers and for reading a checkpoint.
PROGRAM_BYTES = 1_500_000_000
# A first start downloads the checkpoint and packs it.
_START_S = 3600
_PROBE_S = 10


def pod_spec(
    name: str, deployment: Deployment, source: CheckpointSource, facts: ModelFacts
) -> dict[str, Any]:
    """Builds a non-root, read-only pod with the config and a volume, and time to drain."""
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": DRAIN_S + 30,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(deployment, source, facts)],
        "volumes": [
            {"name": "config", "configMap": {"name": name}},
            {"name": "data", "persistentVolumeClaim": {"claimName": name}},
            {"name": "scratch", "emptyDir": {}},
        ],
    }


def memory_bytes(deployment: Deployment, facts: ModelFacts) -> int:
    """Host memory of the pod: the programs, two layers of experts while it packs, the host tier,
    and the budget if the device is host memory."""
    config = deployment.config()
    device = 0 if place_of(config) == "accelerator" else deployment.budget.vram_bytes
    packing = 2 * facts.expert_bytes["16"] // facts.moe_layers
    held = config.host.bytes
    if isinstance(held, str):  # not resolved: as much as all experts take
        held = 0 if one_memory(config) else facts.expert_bytes[str(config.precision.bits)]
    return PROGRAM_BYTES + packing + device + max(held, deployment.budget.ram_bytes)


def _container(
    deployment: Deployment, source: CheckpointSource, facts: ModelFacts
) -> dict[str, Any]:
    return {
        "name": "tune",
        "image": f"expertune:{deployment.provenance.versions.get('expertune', 'latest')}",
        "args": _arguments(deployment, source),
        "env": _environment(source),
        "ports": [{"name": "http", "containerPort": PORT}],
        "startupProbe": _probe(_START_S // _PROBE_S),
        "readinessProbe": _probe(2),
        "livenessProbe": _probe(6),
        "resources": _resources(deployment, facts),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "config", "mountPath": CONFIG, "readOnly": True},
            {"name": "data", "mountPath": DATA},
            {"name": "scratch", "mountPath": "/tmp"},
        ],
    }


def _arguments(deployment: Deployment, source: CheckpointSource) -> list[str]:
    arguments = ["deploy", f"{CONFIG}/deployment.yaml", "--host", "0.0.0.0", "--port", str(PORT)]
    # A cluster would substitute a variable's value for $(NAME).
    name = deployment.model.id.replace("$(", "$$(")
    arguments += ["--drain", str(DRAIN_S), f"--name={name}"]
    if source.folder is not None and deployment.model.id != "demo":
        arguments += ["--model", f"{DATA}/models"]
    return arguments


def _environment(source: CheckpointSource) -> list[dict[str, Any]]:
    """Environment variables that place every written file in the volume."""
    folders = {
        "HOME": DATA,
        "XDG_DATA_HOME": f"{DATA}/share",
        "XDG_CACHE_HOME": f"{DATA}/cache",
        "HF_HOME": f"{DATA}/huggingface",
    }
    found: list[dict[str, Any]] = [{"name": n, "value": folder} for n, folder in folders.items()]
    if source.hub_id is not None:  # for gated models
        key = {"name": "huggingface", "key": "token", "optional": True}
        found.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": key}})
    return found


def _probe(failures: int) -> dict[str, Any]:
    return {
        "httpGet": {"path": "/healthz", "port": "http"},
        "periodSeconds": _PROBE_S,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def _resources(deployment: Deployment, facts: ModelFacts) -> dict[str, Any]:
    """Requests as much memory as the limit, so that no other pod can take it; and all cores but
    one, because a node keeps some for itself."""
    memory = f"{math.ceil(memory_bytes(deployment, facts) / 2**20)}Mi"
    limits: dict[str, Any] = {"memory": memory}
    if deployment.config().device.name.startswith("cuda"):
        limits["nvidia.com/gpu"] = "1"
    cores = max(1, int(deployment.machine.get("cores", 1)) - 1)
    return {"requests": {"cpu": str(cores), "memory": memory}, "limits": limits}

"""Renders a config for a cluster: ConfigMap, volume claim, Deployment and Service.

The pod runs `tune deploy` from the image that the Dockerfile builds. Values are written by the YAML
library, never pasted into text; names are made valid. Nothing here talks to a cluster.
"""

from __future__ import annotations

import math
from typing import Any

import yaml

from engine.facts.model import ModelFacts
from engine.types import format_bytes
from tuner.deployment.document import Deployment, dump_deployment
from tuner.deployment.formats import script
from tuner.deployment.formats.checkpoint import CheckpointSource, checkpoint_source
from tuner.deployment.formats.names import cluster_name
from tuner.deployment.formats.place import place_of
from tuner.deployment.formats.pod import DATA, PORT, pod_spec
from tuner.errors import ExportError

# The limit of a ConfigMap's text; the object around it takes some more.
MOST_CONFIG_BYTES = 1_000_000
_MARGIN = 1.1  # file systems keep some of a volume for themselves
_DATABASE_BYTES = 1_000_000_000  # telemetry, logs and temporary files of packing


def render_kubernetes(deployment: Deployment, facts: ModelFacts) -> str:
    """Renders four documents below a heading. ExportError if the config is too large for a
    ConfigMap.

    A device `cuda:N` becomes `cuda:0`: a pod sees its assigned GPU as the first one.
    """
    source = checkpoint_source(deployment, facts)
    placed = _on_first_gpu(deployment)
    text = dump_deployment(placed)
    if len(text.encode()) > MOST_CONFIG_BYTES:
        raise ExportError(
            f"the config takes {format_bytes(len(text.encode()))}, a ConfigMap holds 1 MiB: use "
            "fewer or shorter prompts, or export YAML and put the file into the volume"
        )
    label = f"{placed.provenance.study}-{placed.provenance.trial}"
    name = cluster_name("expertune", label, longest=52)  # a pod's name adds to it
    documents = [
        _config_map(name, text),
        _volume_claim(name, volume_bytes(placed, facts)),
        _workload(name, placed, source, facts),
        _service(name),
    ]
    bodies = (yaml.dump(d, Dumper=_Dumper, sort_keys=False, width=100) for d in documents)
    return "\n".join([*_heading(deployment, source), "---\n" + "---\n".join(bodies)])


def volume_bytes(deployment: Deployment, facts: ModelFacts) -> int:
    """The size of the checkpoint, its packs at this precision and the database, plus a tenth."""
    config = deployment.config()
    stored = "prequantized" if "prequantized" in facts.expert_bytes else "16"
    checkpoint = facts.non_expert_bytes + facts.expert_bytes[stored]
    packed = 0 if config.precision.bits == 16 else facts.expert_bytes[str(config.precision.bits)]
    return int((checkpoint + packed) * _MARGIN) + _DATABASE_BYTES


class _Dumper(yaml.SafeDumper):
    """Safe YAML that writes multi-line texts literally and uses no aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Disables aliases, so that repeated labels are written out for readers."""
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _on_first_gpu(deployment: Deployment) -> Deployment:
    name = deployment.config().device.name
    if not name.startswith("cuda"):
        return deployment

    def placed(engine: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return {**engine, "device": {**engine["device"], "name": "cuda:0"}}

    neighbours = [n.model_copy(update={"engine": placed(n.engine)}) for n in deployment.neighbours]
    return deployment.model_copy(
        update={"engine": placed(deployment.engine), "neighbours": neighbours}
    )


def _heading(deployment: Deployment, source: CheckpointSource) -> list[str]:
    config, study = deployment.config(), deployment.provenance
    notes = [
        "Build the image from expertune's Dockerfile, push it where the cluster can pull it, and "
        "set `image` below. Then: kubectl apply --server-side -f THIS_FILE",
        "Nobody is asked for a key: only the cluster reaches the Service; put an ingress that asks "
        "before it.",
        "The volume must not lie on a network file system that SQLite cannot lock.",
    ]
    if source.folder is not None and deployment.model.id != "demo":
        notes.append(
            f"First copy the checkpoint {source.folder} into the volume, as models/: the pod looks "
            f"for it in {DATA}/models."
        )
    if config.device.name.startswith("cuda"):
        notes.append("The GPU is asked for as nvidia.com/gpu, NVIDIA's device plugin.")
    elif place_of(config) == "accelerator":
        notes.append(
            f"No device is asked for: add your plugin's name for {config.device.name} to `limits`."
        )
    return [
        script.comment(
            f"tune deploy of trial {study.trial} of study '{study.study}': {deployment.model.id}, "
            f"revision {deployment.model.revision}. Measured on "
            f"{deployment.machine.get('cpu', 'a machine that is not named')}:"
        ),
        *script.figures(deployment),
        "#",
        *map(script.comment, notes),
    ]


def _metadata(name: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "expertune", "app.kubernetes.io/instance": name}
    return {"name": name, "labels": labels}


def _config_map(name: str, text: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(name),
        "data": {"deployment.yaml": text},
    }


def _volume_claim(name: str, size_bytes: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(name),
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": f"{math.ceil(size_bytes / 2**30)}Gi"}},
        },
    }


def _workload(
    name: str, deployment: Deployment, source: CheckpointSource, facts: ModelFacts
) -> dict[str, Any]:
    """One pod: the config was tuned for one device, and two would share the volume's packs."""
    metadata = _metadata(name)
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": 1,
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": metadata["labels"]},
            "template": {
                "metadata": {"labels": metadata["labels"]},
                "spec": pod_spec(name, deployment, source, facts),
            },
        },
    }


def _service(name: str) -> dict[str, Any]:
    metadata = _metadata(name)
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {
            "type": "ClusterIP",
            "selector": metadata["labels"],
            "ports": [{"name": "http", "port": PORT, "targetPort": "http"}],
        },
    }

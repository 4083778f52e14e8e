"""Manifests: what a cluster's own schema says of them, safety, room, and names."""

import re
from typing import Any

import pytest
import yaml

from tests.requirements import require_module
from tests.tuner.deployment.formats.made import deployment, facts
from tuner.deployment.document import parse_deployment
from tuner.deployment.formats.kubernetes import render_kubernetes, volume_bytes
from tuner.errors import ExportError

VERSIONS = ("1.30", "1.37")  # the oldest that many still run, and the newest that is checked


def documents(made: Any, shapes: Any = None) -> dict[str, dict[str, Any]]:
    found = list(yaml.safe_load_all(render_kubernetes(made, shapes or facts())))
    return {document["kind"]: document for document in found}


def pod_of(made: Any, shapes: Any = None) -> dict[str, Any]:
    return documents(made, shapes)["Deployment"]["spec"]["template"]["spec"]  # type: ignore[no-any-return]


CASES = {
    "a GPU": {},
    "the CPU": {"device.name": "cpu"},
    "another accelerator": {"device.name": "xpu:0"},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES.keys())
def test_the_clusters_own_schema_takes_every_document(settings: dict[str, Any], version: str):
    kubernetes_validate = require_module("kubernetes_validate", "kubernetes-validate")
    for document in documents(deployment(settings, study="A study, of mine")).values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_config_map_holds_the_whole_deployment():
    made = deployment(prompts=("one\ttab", "trailing space ", "a: b # c", "%d\n---\n{{x}}"))
    (text,) = documents(made)["ConfigMap"]["data"].values()
    assert parse_deployment(text) == made


def test_every_document_has_one_valid_name():
    names = {d["metadata"]["name"] for d in documents(deployment(study="My.Study_1")).values()}
    (name,) = names
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", name)


def test_service_and_pod_agree():
    found = documents(deployment())
    labels = found["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert found["Service"]["spec"]["selector"] == labels
    assert found["Deployment"]["spec"]["selector"]["matchLabels"] == labels
    (container,) = pod_of(deployment())["containers"]
    assert found["Service"]["spec"]["ports"][0]["targetPort"] == container["ports"][0]["name"]
    volumes = {volume["name"] for volume in pod_of(deployment())["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_the_pod_may_do_little():
    pod = pod_of(deployment())
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    written = {v["value"] for v in container["env"] if "value" in v}
    mounted = [m["mountPath"] for m in container["volumeMounts"] if not m.get("readOnly")]
    assert all(any(path.startswith(mount) for mount in mounted) for path in written)


def test_the_image_is_of_the_release_that_exported():
    assert pod_of(deployment())["containers"][0]["image"] == "expertune:1.2.3"


def test_it_drains_before_it_is_killed():
    pod = pod_of(deployment())
    arguments = pod["containers"][0]["args"]
    assert pod["terminationGracePeriodSeconds"] > int(arguments[arguments.index("--drain") + 1])


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_health_is_asked_for_on_the_servers_port(probe: str):
    (container,) = pod_of(deployment())["containers"]
    assert container[probe]["httpGet"] == {"path": "/healthz", "port": "http"}


@pytest.mark.parametrize(
    ("device", "gpus"), [("cuda:1", "1"), ("cpu", None), ("emulated:laptop_8gb", None)]
)
def test_a_gpu_is_asked_for_where_the_config_needs_one(device: str, gpus: str | None):
    limits = pod_of(deployment({"device.name": device}))["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == gpus


def test_a_pods_only_gpu_is_its_first():
    (text,) = documents(deployment({"device.name": "cuda:3"}))["ConfigMap"]["data"].values()
    assert parse_deployment(text).config().device.name == "cuda:0"


def test_memory_follows_the_budget_where_it_lies_in_host_memory():
    def memory(device: str, budget: int) -> int:
        made = deployment({"device.name": device, "budget.vram_bytes": budget})
        text = pod_of(made)["containers"][0]["resources"]["limits"]["memory"]
        return int(text.removesuffix("Mi")) << 20

    assert memory("cpu", 5 << 30) - memory("cpu", 1 << 30) == 4 << 30
    assert memory("cuda:0", 5 << 30) == memory("cuda:0", 1 << 30)


def test_the_volume_has_room_for_checkpoint_and_packs():
    shapes = facts()
    made = deployment({"precision.bits": 4})
    whole = shapes.non_expert_bytes + shapes.expert_bytes["16"] + shapes.expert_bytes["4"]
    assert volume_bytes(made, shapes) > whole
    assert volume_bytes(deployment(), shapes) < volume_bytes(made, shapes)


def test_a_folder_is_looked_for_in_the_volume():
    text = render_kubernetes(deployment(model="/srv/moe", revision="local"), facts())
    assert "--model" in text
    assert "First copy the checkpoint" in text
    demo = render_kubernetes(deployment(model="demo", revision="local"), facts())
    assert "--model" not in demo


def test_a_clusters_variables_are_not_put_into_names():
    made = deployment(model="org/$(HOME)")
    assert "--name=org/$$(HOME)" in pod_of(made)["containers"][0]["args"]


def test_a_config_that_no_config_map_holds_is_refused():
    with pytest.raises(ExportError, match="fewer or shorter prompts"):
        render_kubernetes(deployment(prompts=("word " * 250_000,)), facts())

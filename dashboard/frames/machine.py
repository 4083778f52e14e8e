"""Frames of the machine, the model and the package versions behind a study's figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import yaml

from engine.contract.requests import Workload
from engine.inputs.bounded_yaml import BoundedYaml
from engine.types import format_bytes
from tuner.definition.workload import describe_workload
from tuner.store.overview import WrittenExport
from tuner.store.snapshots import StudySnapshot

COLUMNS = ["what", "is"]


def machine_frame(machine: Mapping[str, Any]) -> pd.DataFrame:
    """The machine that the study ran on: columns "what" and "is"; one more row for each GPU."""
    rows = [
        (name.removesuffix("_bytes").replace("_", " "), _said(name, value))
        for name, value in machine.items()
        if name != "gpus"
    ]
    for gpu in machine.get("gpus", ()):
        size = gpu.get("total_bytes")
        memory = f", {format_bytes(size)}" if size else ""
        rows.append((f"GPU {gpu.get('index')}", f"{gpu.get('name')}{memory}"))
    return pd.DataFrame(rows, columns=COLUMNS)


def model_frame(study: StudySnapshot) -> pd.DataFrame:
    """The tuned model: columns "what" and "is"."""
    facts = study.facts
    text = describe_workload(Workload.from_json(dict(study.workload)))
    rows = {
        "model": study.model,
        "revision": facts.get("revision"),
        "fingerprint": study.model_fingerprint,
        "family": facts.get("family"),
        "MoE layers": facts.get("moe_layers"),
        "experts a layer": facts.get("experts"),
        "experts a token": facts.get("experts_per_token"),
        "experts at 16 bits": format_bytes(int(facts.get("expert_bytes", {}).get("16", 0))),
        "all else at 16 bits": format_bytes(int(facts.get("non_expert_bytes", 0))),
        "workload": f"{text} ({study.workload_hash})",
        "device": study.definition.get("device"),
        "seed": study.definition.get("seed"),
    }
    return pd.DataFrame([(name, str(value)) for name, value in rows.items()], columns=COLUMNS)


def versions_frame(versions: Sequence[Mapping[str, str]]) -> pd.DataFrame:
    """One row a package, one column for each distinct set of versions."""
    names = sorted({name for one in versions for name in one})
    return pd.DataFrame(
        [
            {
                "package": name,
                **{f"set {n}": one.get(name, "-") for n, one in enumerate(versions, start=1)},
            }
            for name in names
        ]
    )


def exports_frame(exports: Sequence[WrittenExport]) -> pd.DataFrame:
    """One row an exported file, with the provenance that it states."""
    return pd.DataFrame([_export_row(one) for one in exports])


def _export_row(one: WrittenExport) -> dict[str, Any]:
    stated = _provenance(one.content)
    named = stated.get("versions")
    found = named if isinstance(named, dict) else {}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    return {
        "trial": one.trial,
        "pick": one.pick,
        "file": one.path,
        "written (UTC)": one.created.strftime("%Y-%m-%d %H:%M"),
        "commit": stated.get("commit") or "-",
        "versions": versions,
    }


def _provenance(content: str) -> dict[str, Any]:
    """Reads the provenance of a deployment YAML; {} for other formats, which state none."""
    try:
        data = yaml.load(content, Loader=BoundedYaml)
    except yaml.YAMLError:
        return {}
    found = data.get("provenance") if isinstance(data, dict) else None
    return found if isinstance(found, dict) else {}


def _said(name: str, value: Any) -> str:
    if name.endswith("_bytes") and isinstance(value, int):
        return format_bytes(value)
    return "none" if value is None else str(value)

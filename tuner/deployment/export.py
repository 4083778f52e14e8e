"""Turns a trial into a deployment: gathers, checks, writes atomically."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from engine import files
from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.facts.model import ModelFacts
from tuner.deployment.document import (
    VERSION,
    DeployedQuality,
    DeployedTask,
    DeployedWorkload,
    Deployment,
    MeasuredMetric,
    MeasuredSentinel,
    Neighbour,
    dump_deployment,
)
from tuner.deployment.formats.registry import FORMATS
from tuner.errors import StoreError, UsageError
from tuner.folders import SOURCE
from tuner.pareto.front import Front
from tuner.quality.key import package_versions
from tuner.store.snapshots import StudySnapshot, TrialSnapshot

NEIGHBOURS = 3


def build_deployment(study: StudySnapshot, front: Front, trial: TrialSnapshot) -> Deployment:
    """Builds the complete deployment of this trial, with up to three neighbours."""
    config = _whole(trial)
    others = [member for member in front.members if member.id != trial.id]
    facts = study.facts
    return Deployment.model_validate(
        {
            "schema": VERSION,
            "model": {
                "id": study.definition["model"],
                "revision": facts["revision"],
                "fingerprint": study.model_fingerprint,
            },
            "budget": config["budget"],
            "engine": config,
            "workload": DeployedWorkload.of(Workload.from_json(dict(study.workload))),
            "measured": _measured(trial),
            "quality": _quality(trial),
            "neighbours": [
                Neighbour(trial=m.number, engine=_whole(m), measured=_measured(m), source=m.source)
                for m in _nearest(others, trial)
            ],
            "machine": dict(study.machine),
            "provenance": {
                "study": study.name,
                "trial": trial.number,
                "source": trial.source,
                "seed": study.definition["seed"],
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": package_versions(),
                "commit": source_commit(SOURCE),
            },
        }
    )


def check_format(name: str) -> None:
    """Raises UsageError for a format that this release does not write."""
    if name not in FORMATS:
        raise UsageError(f"--format {name}: this release writes {', '.join(FORMATS)}")


def render(study: StudySnapshot, front: Front, trial: TrialSnapshot) -> str:
    """Returns the deployment of a trial as YAML text."""
    return dump_deployment(build_deployment(study, front, trial))


def render_format(name: str, study: StudySnapshot, front: Front, trial: TrialSnapshot) -> str:
    """Renders the deployment of a trial in one of FORMATS.

    Raises UsageError for another name, ExportError if the format cannot express this config.
    """
    return render_deployment(name, build_deployment(study, front, trial), study)


def render_deployment(name: str, deployment: Deployment, study: StudySnapshot) -> str:
    """Renders a deployment of this study in one of FORMATS; raises as render_format does."""
    check_format(name)
    return FORMATS[name].render(deployment, ModelFacts.from_json(dict(study.facts)))


def write_atomically(path: Path, text: str) -> None:
    """Replaces the file as a whole, so that a reader never sees half of it.

    Raises StoreError with one sentence when the folder cannot be written.
    """
    check_writable(path)
    try:
        files.write_atomically(path, text)
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}") from None


def check_writable(path: Path) -> None:
    """Raises StoreError now, before hours of measuring, if `path` could not be written later."""
    folder = path.absolute().parent
    if not folder.is_dir():
        raise StoreError(f"{path} cannot be written: there is no folder {folder}")
    if path.is_dir():
        raise StoreError(f"{path} cannot be written: it is a folder")
    if not os.access(folder, os.W_OK):
        raise StoreError(f"{path} cannot be written: the folder {folder} is read-only")


def source_commit(folder: Path) -> str | None:
    """The source tree's commit; None outside of one."""
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _whole(trial: TrialSnapshot) -> dict[str, Any]:
    """The trial's resolved config; settings unknown to an earlier release have their defaults."""
    return EngineConfig.from_dict(trial.config or {}).to_dict()


def _measured(trial: TrialSnapshot) -> dict[str, MeasuredMetric | MeasuredSentinel]:
    measured: dict[str, MeasuredMetric | MeasuredSentinel] = {
        name: MeasuredMetric(**asdict(metric)) for name, metric in trial.figures.items()
    }
    measured["sentinel"] = MeasuredSentinel(
        **(trial.sentinel or {"compute_ms": 0.0, "read_ms": 0.0})
    )
    return measured


def _quality(trial: TrialSnapshot) -> DeployedQuality | None:
    report, value = trial.quality, trial.scores.get("quality")
    if report is None or value is None:
        return None
    bits_per_byte = report.bits_per_byte
    return DeployedQuality(
        value=value,
        bits_per_byte=bits_per_byte,
        reference_bits_per_byte=None if bits_per_byte is None else value * bits_per_byte,
        kld_mean=report.kld_mean,
        top1_agreement=report.top1_agreement,
        prefill_kld_mean=report.prefill_kld_mean,
        prefill_top1_agreement=report.prefill_top1_agreement,
        tasks=[DeployedTask(**asdict(result)) for result in report.tasks],
    )


def _nearest(others: list[TrialSnapshot], trial: TrialSnapshot) -> list[TrialSnapshot]:
    """The front's members with the most similar speed."""

    def distance(other: TrialSnapshot) -> float:
        ours, theirs = _speed(trial.scores), _speed(other.scores)
        return abs(theirs - ours)

    return sorted(others, key=distance)[:NEIGHBOURS]


def _speed(scores: Mapping[str, Any]) -> float:
    return float(scores.get("output_tps", -scores.get("tpot_ms", 0.0)))

"""The deployment YAML, read strictly: `tune export` writes it and deployments run it.

Top level in this order: schema, model, budget, engine, measured, quality, neighbours, machine,
provenance, workload; the workload's prompts, most of the file, stand last. Settings that equal the
defaults of this version are left out (defaults.py). An unknown key or version is an error.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from engine.config.settings import EngineConfig
from engine.contract.requests import Workload
from engine.errors import ConfigError
from tuner.definition.strict_yaml import Strict, dump_yaml, load_yaml, parse_yaml, read_strict
from tuner.definition.workload import workload_hash
from tuner.deployment.defaults import changed_settings, complete_settings, missing_settings
from tuner.errors import DeploymentError
from tuner.store.snapshots import FigureSource

VERSION: Literal["expertune/v1"] = "expertune/v1"
ENGINE = (
    "Settings by section, resolved. What is left out has its default of this version, listed in "
    "defaults.v1.json; cache.expert_bytes and device.name are never left out."
)
SCHEMA_FILE = Path(__file__).parent / "deployment.schema.json"


class DeployedModel(Strict):
    """Which checkpoint the figures hold for."""

    id: str
    revision: str
    fingerprint: str


class DeployedBudget(Strict):
    """Hard limits in bytes; 0: none."""

    vram_bytes: int = Field(ge=0)
    ram_bytes: int = Field(ge=0)
    disk_bytes: int = Field(ge=0)


class DeployedWorkload(Strict):
    """What was run to measure, complete, so that it can be run again."""

    name: str
    hash: str
    chat: bool
    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)
    sequences: int = Field(ge=1)
    prompts: list[str]
    continuations: list[str] = Field(default=[])

    def to_workload(self) -> Workload:
        """Returns the workload in the engine's type."""
        return Workload(
            name=self.name,
            prompts=tuple(self.prompts),
            continuations=tuple(self.continuations),
            chat=self.chat,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            sequences=self.sequences,
        )

    @classmethod
    def of(cls, workload: Workload) -> DeployedWorkload:
        """Builds the entry, with the workload's hash."""
        return cls(hash=workload_hash(workload), **_plain(workload.to_json()))


class MeasuredMetric(Strict):
    """A mean and its 95 % interval over n repeats."""

    value: float
    low: float
    high: float
    n: int = Field(ge=1)
    unit: str
    estimate: bool = False


class MeasuredSentinel(Strict):
    """The fixed work that was timed beside it, to compare days and machines."""

    compute_ms: float
    read_ms: float


Measured = dict[str, MeasuredMetric | MeasuredSentinel]


class DeployedTask(Strict):
    """One lm-eval metric. chance: what guessing gives, None where a task has no choices; group: the
    aggregate of a group, whose tasks stand beside it."""

    task: str
    metric: str
    value: float
    stderr: float | None
    n: int
    chance: float | None = None
    higher_is_better: bool | None = None
    group: bool = False


class DeployedQuality(Strict):
    """Against the 16-bit model: value 1 is no loss."""

    value: float
    bits_per_byte: float | None
    reference_bits_per_byte: float | None
    kld_mean: float | None
    top1_agreement: float | None
    prefill_kld_mean: float | None = None
    prefill_top1_agreement: float | None = None
    tasks: list[DeployedTask]


class Neighbour(Strict):
    """Another point of the front, to fall back to."""

    trial: int
    engine: dict[str, dict[str, Any]] = Field(description=ENGINE)
    measured: Measured
    source: FigureSource | None = None

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return _complete(value)


class Provenance(Strict):
    """Where the figures come from. source: None in files of before it was stated."""

    study: str
    trial: int
    source: FigureSource | None = None
    seed: int
    created: str
    versions: dict[str, str]
    commit: str | None


class Deployment(Strict):
    """One deployable configuration."""

    version: Literal["expertune/v1"] = Field(alias="schema")
    model: DeployedModel
    budget: DeployedBudget
    engine: dict[str, dict[str, Any]] = Field(description=ENGINE)
    measured: Measured
    quality: DeployedQuality | None
    neighbours: list[Neighbour] = Field(max_length=3)
    machine: dict[str, Any]
    provenance: Provenance
    workload: DeployedWorkload

    @field_validator("engine")
    @classmethod
    def _check_engine(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        return _complete(value)

    @field_validator("measured")
    @classmethod
    def _check_measured(cls, value: Measured) -> Measured:
        for name, entry in value.items():
            if (name == "sentinel") != isinstance(entry, MeasuredSentinel):
                raise ValueError(f"'{name}': 'sentinel' holds times, every other key a metric")
        return value

    @field_validator("workload")
    @classmethod
    def _check_hash(cls, value: DeployedWorkload) -> DeployedWorkload:
        if workload_hash(value.to_workload()) != value.hash:
            raise ValueError("the workload's hash does not match its content: it was edited")
        return value

    def config(self) -> EngineConfig:
        """Returns the engine's settings."""
        return EngineConfig.from_dict(self.engine)


def dump_deployment(deployment: Deployment) -> str:
    """Dumps YAML in the contract's order, without settings that equal the defaults."""
    data = json.loads(deployment.model_dump_json(by_alias=True))
    for point in (data, *data["neighbours"]):
        point["engine"] = changed_settings(point["engine"])
        for entry in point["measured"].values():
            if entry.get("estimate") is False:
                del entry["estimate"]
    return dump_yaml(data, compact=True)


def load_deployment(path: Path) -> Deployment:
    """Reads a deployment file; raises DeploymentError with one sentence."""
    if not path.exists() and path.suffix not in (".yaml", ".yml"):
        raise DeploymentError(
            f"there is no file {path}: give a deployment YAML; of a study it is written by `tune "
            f"export {shlex.quote(str(path))} -o {shlex.quote(f'{path.name}.yaml')}`"
        )
    return _read(load_yaml(path, DeploymentError), str(path))


def parse_deployment(text: str, source: str = "the deployment") -> Deployment:
    """Reads a deployment from text."""
    return _read(parse_yaml(text, source, DeploymentError), source)


def deployment_schema() -> dict[str, Any]:
    """Returns the JSON Schema that is shipped as deployment.schema.json."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Deployment.model_json_schema(by_alias=True),
    }


def _read(data: Any, source: str) -> Deployment:
    version = data.get("schema") if isinstance(data, dict) else None
    if isinstance(data, dict) and version is None:
        raise DeploymentError(
            f"{source} is no deployment, which begins with `schema: {VERSION}`: a study writes one "
            "to its output, as `tune export STUDY -o FILE` does"
        )
    if isinstance(data, dict) and version != VERSION:
        raise DeploymentError(
            f"{source}: 'schema' is {version!r}, this program reads '{VERSION}'; update expertune"
        )
    return read_strict(Deployment, data, source, DeploymentError)


def _complete(engine: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    try:
        config = EngineConfig.from_dict(complete_settings(engine)).to_dict()
    except ConfigError as error:
        raise ValueError(
            f"{error}; a file from before settings got their present names (CHANGELOG.md) has to "
            "be made again by a study"
        ) from None
    given = {
        section: {name: config[section][name] for name in values}
        for section, values in engine.items()
    }
    if (missing := missing_settings(engine)) or engine != given:
        raise ValueError(f"settings must be resolved; missing: {', '.join(missing) or 'none'}")
    return config


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in data.items()}

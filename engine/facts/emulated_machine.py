"""Hardware profiles for emulation and prediction.

A profile is a YAML file of published figures. The emulated device divides all of them by one stated
factor, chosen so that this machine's core reads weights as fast as the slowed device would
(decoding is bound by bytes per second); ratios between compute, link and host memory are then the
profile's.
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from engine.errors import UsageError, nearest_hint
from engine.facts.model import ModelFacts
from engine.facts.timings import ModelTimings, RecordSource
from engine.files import studies_folder
from engine.inputs.bounded_yaml import MOST_YAML_BYTES, BoundedYaml
from engine.inputs.bounds import read_bounded
from engine.types import parse_size_bytes, shown

PREFIX = "emulated:"

_CURVE_TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)
_LAUNCH_S = 5e-6  # a typical kernel launch
_READBACK_S = 15e-6  # chosen experts back to the host, one synchronisation per layer
_HOST_FLOPS = 1e12  # a desktop processor in 16 bits


@dataclass(frozen=True)
class EmulatedMachine:
    """One machine. All figures are the real machine's; slow_down divides every speed.

    name, description, sources: for people; device_bytes: memory of the device; device_bytes_per_s:
    its memory bandwidth; device_flops: dense 16-bit; link_bytes_per_s, link_latency_s: host to
    device, one direction; host_bytes_per_s: host memory; disk_bytes_per_s: reads.
    """

    name: str
    description: str
    sources: str
    device_bytes: int
    device_bytes_per_s: float
    device_flops: float
    link_bytes_per_s: float
    link_latency_s: float
    host_bytes_per_s: float
    disk_bytes_per_s: float
    slow_down: float

    @property
    def slowed_link_bytes_per_s(self) -> float:
        """The link's rate on the emulated device."""
        return self.link_bytes_per_s / self.slow_down

    @property
    def slowed_link_latency_s(self) -> float:
        """The link's latency on the emulated device."""
        return self.link_latency_s * self.slow_down

    @property
    def slowed_host_bytes_per_s(self) -> float:
        """The host memory's rate on the emulated device."""
        return self.host_bytes_per_s / self.slow_down


def predicted_timings(machine: EmulatedMachine, facts: ModelFacts) -> ModelTimings:
    """Predict timings of a model on the real machine from its published figures: a roofline.

    Weights are read once per pass and multiplied at the device's dense rate. Launches cost
    _LAUNCH_S each, an assumption: those of a layer's experts are shared (an upload, gate and up,
    down, the sum), late arrivals take two more. The result is predicted, not measured.
    """
    layers = facts.moe_layers
    dense_layer = facts.non_expert_bytes / max(1, facts.layers)
    rate, flops = machine.device_bytes_per_s, machine.device_flops

    def work(weight_bytes: float, bits: int, tokens: int, bandwidth: float, peak: float) -> float:
        operations = 2 * (weight_bytes * 8 / bits) * tokens
        return max(weight_bytes / bandwidth, operations / peak)

    expert_s = {
        int(bits): {n: work(size, int(bits), n, rate, flops) for n in _CURVE_TOKENS}
        for bits, size in facts.record_bytes.items()
    }
    host_s = {
        int(bits): {
            n: work(size, int(bits), n, machine.host_bytes_per_s, _HOST_FLOPS)
            for n in _CURVE_TOKENS
        }
        for bits, size in facts.record_bytes.items()
    }
    non_expert_s = {
        n: 10 * _LAUNCH_S + work(dense_layer, 16, n, rate, flops) for n in _CURVE_TOKENS
    }
    link = RecordSource({1: machine.link_bytes_per_s}, machine.link_latency_s, "queued")
    disk = RecordSource({1: machine.disk_bytes_per_s}, 0.0, "shared")
    return ModelTimings(
        model=facts.fingerprint,
        device=f"{PREFIX}{machine.name}",
        sources=dict.fromkeys(expert_s, link),
        disk_sources=dict.fromkeys(expert_s, disk),
        non_expert_s={n: seconds * facts.layers / layers for n, seconds in non_expert_s.items()},
        router_s=dict.fromkeys(_CURVE_TOKENS, 2 * _LAUNCH_S),
        layer_s={bits: dict.fromkeys(_CURVE_TOKENS, 4 * _LAUNCH_S) for bits in expert_s},
        expert_s=expert_s,
        pass_s=dict.fromkeys(_CURVE_TOKENS, 4 * _LAUNCH_S),
        policy_s=dict.fromkeys(_CURVE_TOKENS, _READBACK_S),
        submit_s=2 * _LAUNCH_S,
        gate_lookahead_s=2 * _LAUNCH_S,
        wake_s=dict.fromkeys(expert_s, 2 * _LAUNCH_S),
        restart_s=dict.fromkeys(expert_s, 0.0),
        contention=dict.fromkeys(expert_s, 1.0),
        host_expert_s=host_s,
        notes={"predicted": "from published figures, not measured"},
    )


def machine_folder() -> Path:
    """The folder of the hardware profiles."""
    return studies_folder() / "hardware"


def machine_names() -> tuple[str, ...]:
    """Names of the installed profiles."""
    return tuple(sorted(path.stem for path in machine_folder().glob("[!.]*.yaml")))


def load_machine(name: str) -> EmulatedMachine:
    """Load a profile by name, or by the path of its YAML. Raises UsageError that says what is
    wrong."""
    names = machine_names()
    if name not in names and not (name.endswith(".yaml") and os.path.isfile(name)):
        hint = nearest_hint(name, names)
        raise UsageError(
            f"there is no machine '{shown(name)}'{hint} (there are: {', '.join(names)})"
        )
    path = machine_folder() / f"{name}.yaml" if name in names else Path(name)
    try:
        data = yaml.load(read_bounded(path, MOST_YAML_BYTES), Loader=BoundedYaml)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UsageError(f"{path} cannot be read as YAML: {error}") from None
    fields = {field.name: field.type for field in dataclasses.fields(EmulatedMachine)}
    given = dict(data) if isinstance(data, dict) else {}
    unknown = sorted(shown(key) for key in set(given) - set(fields))
    missing = sorted(set(fields) - set(given))
    if unknown or missing:
        raise UsageError(f"{path}: unknown keys {unknown}, missing keys {missing}")
    values: dict[str, Any] = {}
    for key, kind in fields.items():
        value = given[key]
        try:
            if kind == "str":
                values[key] = str(value)
            elif kind == "int":
                values[key] = parse_size_bytes(value)
            else:
                values[key] = _above_zero(value)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{path}: {key} = {shown(repr(value))}: {error}") from None
    return EmulatedMachine(**values)


def _above_zero(value: Any) -> float:
    try:
        found = float(value)
    except ValueError:
        found = 0.0
    if not 0 < found < math.inf:
        raise ValueError("write a number above zero")
    return found

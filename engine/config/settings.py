"""The engine's configuration: frozen, composed, addressed by paths such as `cache.expert_bytes`.

In: nested dicts or `path -> value` overlays. Out: EngineConfig; `resolve` makes every automatic
choice. Unknown keys are errors that name the nearest valid one. Pure: no torch, no clock.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from engine.config.convert import convert
from engine.config.ranges import check_ranges
from engine.errors import ConfigError, nearest_hint
from engine.files import json_digest
from engine.types import (
    HOST_DEVICES,
    ActivationBits,
    AllocationName,
    Bits,
    DirectName,
    DtypeName,
    EmbeddingsName,
    EvictionName,
    KernelName,
    KvBits,
    KvPlacementName,
    LowBits,
    NonExpertBits,
    OptimizeName,
    OrderName,
    PlacementName,
    PlanName,
    PrecisionName,
    PredictorName,
    QueueName,
    ScopeName,
    shown,
)

Options = Mapping[str, Any]


@dataclass(frozen=True)
class CacheConfig:
    """How many experts stay on the device, and which."""

    expert_bytes: int | str = "auto"  # bytes, a fraction such as `25%`, or auto: all that fits
    allocation: AllocationName = "uniform"
    shallow_layers: int = -1  # for shallow_first; -1: Fate's 4 of 28, scaled
    eviction: EvictionName = "lru"
    scope: ScopeName = "layer"
    low_bits_fraction: float = (
        0.0  # of the slots' bytes, for records of low_bits; 0: they take any slot
    )
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class PrefetchConfig:
    """Which experts are fetched before the router selects them."""

    predictor: PredictorName = "none"
    depth: int = 0
    extra_experts: int = 0
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class TransferConfig:
    """How records are transferred."""

    queue: QueueName = "two_priority"
    chunk_bytes: int = 1 << 20
    in_flight: int = 2


@dataclass(frozen=True)
class PrecisionConfig:
    """Precision of each expert.

    bits: `prequantized` keeps a pre-quantized checkpoint's own codes: it sets prequantized, and
    resolving sets bits to theirs (16 if the checkpoint is not quantized). non_expert_bits: of the
    linear layers that are not experts. activation_bits: 8 rounds what codes of 8 bits and fewer are
    multiplied by, on the CPU. low_bits (0: none), low_bits_threshold, skip_threshold and low_mass
    belong to the schemes that decide on a miss; what such a run computes depends on its cache.

    options.table: bits of each expert for the by_* schemes, or options.average_bits (and
    options.trace) to make one from. options.optimize: how the scales and zeros of 4, 3 and 2 bits
    are chosen; weighted_squares (the default) or none, round to nearest. options.decode_miss_bits:
    for popularity_mass.
    """

    bits: Bits = 16
    prequantized: bool = False
    non_expert_bits: NonExpertBits = 16
    activation_bits: ActivationBits = 16
    group_size: int = 64
    scheme: PrecisionName = "uniform"
    low_bits: LowBits = 0
    low_group_size: int = 32
    low_bits_threshold: float = 0.6
    skip_threshold: float = 0.9
    low_mass: float = 0.3
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class BatchConfig:
    """Micro-batches that share each load, sequences per micro-batch, and the order of experts."""

    count: int = 1
    size: int = 1
    order: OrderName = "ready_first"


@dataclass(frozen=True)
class PlanConfig:
    """Which plan chooses micro-batches and prefetch depth."""

    name: PlanName = "fixed"


@dataclass(frozen=True)
class PrefillConfig:
    """How a prompt is split into chunks."""

    chunk_tokens: int = 256


@dataclass(frozen=True)
class PlacementConfig:
    """Where experts are computed that are not on the device. On the host: those of at most
    host_tokens tokens (host_below), the fraction host_fraction of them (host_split), or those that
    the host ends before the link (earliest). embeddings: where the embedding table lies. Both have
    no effect if the device is the CPU.

    options.host_ratios, for earliest: by tokens of an expert, the seconds that the host takes for
    it over those that its transfer takes; without it they are measured.
    """

    name: PlacementName = "device"
    host_tokens: int = 1
    host_fraction: float | str = "auto"  # auto: from the rates measured while both run
    embeddings: EmbeddingsName = "device"
    options: Options = field(default_factory=dict)


@dataclass(frozen=True)
class HostConfig:
    """The host tier between disk and device. bytes: 0 for none, a fraction of all records such as
    `50%`, or auto: all of them, at most what budget.ram_bytes leaves, or 70 % of the memory that is
    free. No effect on the CPU device."""

    bytes: int | str = "auto"


@dataclass(frozen=True)
class KvConfig:
    """Keys and values: capacity in tokens of one sequence, bits of all but the newest tokens,
    the fraction of positions that a layer keeps, and where they lie between two uses (host: no
    effect if the device is host memory). elastic: while serving, unreserved KV memory holds
    experts."""

    max_tokens: int = 1024
    bits: KvBits = 16
    keep_fraction: float = 1.0
    placement: KvPlacementName = "device"
    elastic: bool = False


@dataclass(frozen=True)
class ServeConfig:
    """Caches of a server beside the engine.

    prefix_cache_tokens: capacity of the prefix cache in tokens of keys and values (0: none);
    response_cache_entries: how many deterministic answers are kept on disk and reused (0: none).
    """

    prefix_cache_tokens: int = 0
    response_cache_entries: int = 0


@dataclass(frozen=True)
class IoConfig:
    """How the disk is read."""

    threads: int = 2
    direct: DirectName = "auto"


@dataclass(frozen=True)
class KernelConfig:
    """Which kernels multiply. auto: native ones on the CPU, elsewhere the fastest that is right,
    up to crossover_tokens tokens of an expert; 0: as `tune profile` measured, by precision."""

    name: KernelName = "auto"
    crossover_tokens: int = 0


@dataclass(frozen=True)
class CpuConfig:
    """Threads of the native products; 0: as many as there are physical cores."""

    threads: int = 0


@dataclass(frozen=True)
class ComputeConfig:
    """The dtype of activations and of the non-expert weights. capture: whether an accelerator
    captures what decoding queues between the experts of two layers, and queues it as one."""

    dtype: DtypeName = "bfloat16"
    capture: bool = False


@dataclass(frozen=True)
class DeviceConfig:
    """name: auto, cpu, cuda:0 or any device type that torch knows. The memory equation counts with
    context_bytes: what the driver's context took as the device was opened, 0 if not measured; and
    correction_bytes: what runs of this model took there beyond it (negative: less)."""

    name: str = "auto"
    context_bytes: int = 0
    correction_bytes: int = 0


@dataclass(frozen=True)
class BudgetConfig:
    """Hard limits in bytes; 0 means no limit was given."""

    vram_bytes: int = 0
    ram_bytes: int = 0
    disk_bytes: int = 0


@dataclass(frozen=True)
class EngineConfig:
    """Everything that decides how the engine runs a model."""

    cache: CacheConfig = CacheConfig()
    prefetch: PrefetchConfig = PrefetchConfig()
    transfer: TransferConfig = TransferConfig()
    precision: PrecisionConfig = PrecisionConfig()
    batch: BatchConfig = BatchConfig()
    plan: PlanConfig = PlanConfig()
    prefill: PrefillConfig = PrefillConfig()
    placement: PlacementConfig = PlacementConfig()
    host: HostConfig = HostConfig()
    kv: KvConfig = KvConfig()
    serve: ServeConfig = ServeConfig()
    io: IoConfig = IoConfig()
    kernel: KernelConfig = KernelConfig()
    cpu: CpuConfig = CpuConfig()
    compute: ComputeConfig = ComputeConfig()
    device: DeviceConfig = DeviceConfig()
    budget: BudgetConfig = BudgetConfig()

    def overlay(self, values: Mapping[str, Any]) -> EngineConfig:
        """A copy with the `path -> value` pairs applied.

        Text is converted to the field's type (`"4"` for bits, `"2MB"` for bytes). Raises
        ConfigError that names the nearest path, or the allowed values.
        """
        sections: dict[str, dict[str, Any]] = {}
        for path, value in _without_prequantized_word(values).items():
            section, name = _split_path(path)
            if name.startswith("options."):
                options = sections.setdefault(section, {}).setdefault(
                    "options", dict(getattr(self, section).options)
                )
                options[name.removeprefix("options.")] = value
            else:
                sections.setdefault(section, {})[name] = value
        built = {
            section: dataclasses.replace(
                getattr(self, section),
                **{
                    name: convert(f"{section}.{name}", type(getattr(self, section)), name, value)
                    for name, value in changes.items()
                },
            )
            for section, changes in sections.items()
        }
        config = dataclasses.replace(self, **built)
        optimize_name(config)
        check_ranges(config.flat())
        return config

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """The complete config as a nested plain dict."""
        return dataclasses.asdict(self)

    def flat(self) -> dict[str, Any]:
        """The complete config as `path -> value`."""
        return {
            f"{section}.{name}": value
            for section, values in self.to_dict().items()
            for name, value in values.items()
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> EngineConfig:
        """Read a nested dict; unknown keys raise ConfigError."""
        flat: dict[str, Any] = {}
        for section, values in data.items():
            if not isinstance(values, Mapping):
                _split_path(f"{section}.")
                raise ConfigError(f"'{section}' must be a group of settings, not {values!r}")
            for name, value in values.items():
                flat[f"{section}.{name}"] = value
        return cls().overlay(flat)

    def digest(self) -> str:
        """Hash of the complete config, 16 hex digits."""
        return json_digest(self.to_dict())


LINK_CHUNKS = (256, 1024, 2048, 4096)  # tokens of a prefill chunk that a study tries over a link
_LINK_CHUNK_TOKENS = 2048  # at 4 bits a laptop's link and card then need about the same time


def link_chunks(prompt_tokens: int) -> tuple[int, ...]:
    """LINK_CHUNKS up to the first that takes a prompt of this length whole."""
    shorter = sum(chunk < prompt_tokens for chunk in LINK_CHUNKS)
    return LINK_CHUNKS[: shorter + 1]


def base_config(
    device: str = "auto",
    capacity: int | None = None,
    vram_bytes: int = 0,
    ram_bytes: int = 0,
    disk_bytes: int = 0,
    prompt_tokens: int | None = None,
) -> EngineConfig:
    """The default config with these budgets on this device.

    capacity: tokens of one sequence (kv.max_tokens), None for the default; prompt_tokens: of the
    longest prompt, None: as many as fit. Beside a device with memory of its own, misses are
    computed where that ends first, and prompts are read in chunks that are worth moving a layer's
    experts for.
    """
    values: dict[str, Any] = {
        "device.name": device,
        "budget.vram_bytes": vram_bytes,
        "budget.ram_bytes": ram_bytes,
        "budget.disk_bytes": disk_bytes,
        "kv.max_tokens": KvConfig().max_tokens if capacity is None else capacity,
    }
    if device not in HOST_DEVICES:
        longest = values["kv.max_tokens"] if prompt_tokens is None else prompt_tokens
        values["placement.name"] = "earliest"
        values["prefill.chunk_tokens"] = min(link_chunks(longest)[-1], _LINK_CHUNK_TOKENS)
    return EngineConfig().overlay(values)


def config_paths() -> tuple[str, ...]:
    """Every valid path, in order of declaration."""
    return tuple(EngineConfig().flat())


OPTIMIZE = "optimize"
"""The precision option that affects record bytes under every scheme."""


def optimize_name(config: EngineConfig) -> OptimizeName:
    """How scales and zeros are chosen under this config. Raises ConfigError."""
    allowed: tuple[OptimizeName, ...] = get_args(OptimizeName)
    wanted = config.precision.options.get(OPTIMIZE, allowed[0])
    for name in allowed:
        if wanted == name:
            return name
    raise ConfigError(
        f"precision.options.{OPTIMIZE} = {wanted!r}: allowed are {', '.join(allowed)}"
    )


def _without_prequantized_word(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replaces the word `prequantized` in precision.bits by a number and sets
    precision.prequantized, if bits are given."""
    plain = dict(values)
    if "precision.bits" in plain:
        prequantized = plain["precision.bits"] == "prequantized"
        plain.setdefault("precision.prequantized", prequantized)
        if prequantized:
            plain["precision.bits"] = 16
    return plain


def _split_path(path: str) -> tuple[str, str]:
    section, _, name = path.partition(".")
    sections = {f.name: f for f in dataclasses.fields(EngineConfig)}
    if section in sections:
        names = {f.name for f in dataclasses.fields(getattr(EngineConfig(), section))}
        if name in names or (name.startswith("options.") and "options" in names):
            return section, name
    raise ConfigError(f"there is no setting '{shown(path)}'{nearest_hint(path, config_paths())}")

"""The memory equation: what a configuration needs on the device, and what fits a budget.

`resolve` makes every automatic choice of a config from model facts alone, so that the tuner can say
"does not fit" before anything runs. Pure arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from engine.config.exactness import rounds_activations
from engine.config.settings import EngineConfig
from engine.errors import ConfigError, InfeasibleError
from engine.facts.card_memory import CONTEXT_BYTES
from engine.facts.emulated_machine import PREFIX
from engine.facts.model import ModelFacts
from engine.layout.non_expert import block_rows, non_expert_matrix_bytes
from engine.layout.record import RECORD_ALIGN, resolve_group_size, supported_bits
from engine.memory.capture import capture_bytes
from engine.memory.host import with_host_bytes
from engine.memory.kv import (
    DTYPE_BYTES,
    check_elastic,
    check_kv,
    check_prefix_cache,
    kv_bytes,
    kv_growing_bytes,
    kv_growth_bytes,
    prefix_bytes,
)
from engine.memory.records import all_records_bytes, record_bytes, record_bytes_of
from engine.precision.table import PLANNED, bits_table, run_bits
from engine.types import Bits, format_at_least, format_bytes

# Code pages, allocator slack and kernel scratch that a run touches beyond the terms below; measured
# on the reference machine (docs/lab, "memory equation").
FIXED_WORKSPACE_BYTES = 34_000_000
_CONTEXT_STEP = 16_000_000  # a measured context is rounded up to it: processes differ a little
_STACKING = ("next_gate", "pregate")  # these keep copies of the routers of several layers
_INDEX_BYTES_PER_TENSOR = 2_500  # names and locations of an expert's tensors, as Python objects


@dataclass(frozen=True)
class MemoryPlan:
    """The memory equation of one configuration, in bytes; the budget bounds the sum.

    slots: of all sizes; slots_by_bits: if records of different precisions have separate slots;
    elastic_slots: more of them, in unreserved KV memory; correction_bytes: device.correction_bytes.
    """

    slots: int
    slots_bytes: int
    non_expert_bytes: int
    kv_bytes: int
    workspace_bytes: int
    staging_bytes: int
    slots_by_bits: dict[Bits, int] = field(default_factory=dict)
    elastic_slots: int = 0
    correction_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All bytes on the device."""
        return (
            self.slots_bytes
            + self.non_expert_bytes
            + self.kv_bytes
            + self.workspace_bytes
            + self.staging_bytes
            + self.correction_bytes
        )

    def resident_fraction(self, experts: int) -> float:
        """Fraction of this many experts that the slots can hold (one may lie in two pools)."""
        return min(1.0, self.slots / experts)

    def to_json(self) -> dict[str, Any]:
        """A JSON-ready dict, with the total."""
        return {**asdict(self), "total_bytes": self.total_bytes}


class Resolved(NamedTuple):
    """A configuration with every automatic choice made, and the memory that it needs."""

    config: EngineConfig
    memory: MemoryPlan


def resolve(config: EngineConfig, facts: ModelFacts) -> Resolved:
    """Make every automatic choice and check the budget.

    Returns the complete config (expert_bytes in bytes, a group size that divides) and its memory.
    Raises InfeasibleError with the smallest budget that would fit this precision and batch, and
    ConfigError if the model's shapes do not allow the precision.
    """
    config = complete(config, facts)
    check_kv(config, facts)
    check_prefix_cache(config, facts)
    check_elastic(config, facts, host_memory=_on_host(config))
    record = record_bytes(config, facts)
    base = _base_plan(config, facts, record)
    kinds = _kinds(config, facts)
    least = sum(kind.least * kind.record_bytes for kind in kinds)
    budget = config.budget.vram_bytes
    smallest = base.total_bytes + least
    if budget and smallest > budget:
        raise InfeasibleError(
            f"{config.precision.bits}-bit experts with {config.batch.count} x {config.batch.size} "
            f"sequences need at least {format_at_least(smallest)} ({smallest} bytes), the budget "
            f"is {format_bytes(budget)}: give more memory, fewer bits or shorter sequences",
            smallest,
        )
    config = with_host_bytes(config, facts, all_records_bytes(config, facts))
    wanted = config.cache.expert_bytes
    capacity = _capacity(config, kinds, budget - base.total_bytes)
    if wanted != "auto" and capacity < least:
        raise InfeasibleError(
            f"cache.expert_bytes = {wanted} holds {capacity // record} experts of {record} "
            "bytes; this "
            f"model needs at least {sum(kind.least for kind in kinds)} slots "
            f"({format_bytes(least)})",
            smallest,
        )
    slots = _fill(kinds, capacity)
    by_bits = {kind.bits: count for kind, count in zip(kinds, slots, strict=True)}
    plan = replace(
        base,
        slots=sum(slots),
        slots_bytes=sum(k.record_bytes * count for k, count in zip(kinds, slots, strict=True)),
        slots_by_bits=by_bits if len(kinds) > 1 else {},
        elastic_slots=_elastic_slots(config, facts, kinds[0], sum(slots)),
    )
    if budget and plan.total_bytes > budget:
        raise InfeasibleError(
            f"cache.expert_bytes = {wanted} brings the total to {format_bytes(plan.total_bytes)}, "
            f"the budget is {format_bytes(budget)}: lower cache.expert_bytes or raise the budget",
            plan.total_bytes,
        )
    return Resolved(config.overlay({"cache.expert_bytes": plan.slots_bytes}), plan)


def on_opened_device(
    config: EngineConfig, name: str, context_bytes: int | None = None
) -> EngineConfig:
    """The config on the device that was opened.

    context_bytes: of its driver's context, None if nothing measured it. A config that has one keeps
    it: what was planned to fit still fits when another process is given a few bytes more.
    """
    measured = -(-(context_bytes or 0) // _CONTEXT_STEP) * _CONTEXT_STEP
    known = config.device.context_bytes or measured
    return replace(config, device=replace(config.device, name=name, context_bytes=known))


def with_embeddings_off_device(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
    """The config with the embedding table on the host, where that is a memory of its own and the
    head is not the same tensor: a token reads one row of it."""
    if _on_host(config) or not facts.embedding_bytes:
        return config
    return config.overlay({"placement.embeddings": "host"})


def complete(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
    """Make every automatic choice that no budget decides: bits, group sizes, a plan's table.

    Raises ConfigError if the model's shapes do not allow the precision.
    """
    config = _resolve_group(_resolve_prequantized(config, facts), facts)
    if config.precision.activation_bits == 16 or rounds_activations(config):
        return config
    return config.overlay({"precision.activation_bits": 16})


@dataclass(frozen=True)
class _Kind:
    """Slots of one size. experts: number of experts that can use them; least: the fewest slots that
    run; fraction: of the bytes for slots."""

    bits: Bits
    record_bytes: int
    experts: int
    least: int
    fraction: float


def _kinds(config: EngineConfig, facts: ModelFacts) -> tuple[_Kind, ...]:
    """One kind, unless records of different precisions have separate slots."""
    total = facts.moe_layers * facts.experts
    least = minimum_slots(config, facts)
    table = bits_table(config, facts)
    if table is not None:
        found = []
        for bits in run_bits(config):
            layers = [row.count(bits) for row in table if bits in row]
            if layers:
                need = least if _shares_slots(config) else len(layers)
                size = record_bytes_of(config, facts, bits)
                found.append((bits, size, sum(layers), min(need, sum(layers))))
        everything = sum(size * experts for _, size, experts, _ in found)
        return tuple(_Kind(*kind, fraction=kind[1] * kind[2] / everything) for kind in found)
    own, low_bits_fraction = config.precision.bits, config.cache.low_bits_fraction
    one = _Kind(own, record_bytes(config, facts), total, least, 1.0)
    if len(run_bits(config)) == 1 or not low_bits_fraction:
        return (one,)
    low = config.precision.low_bits
    assert low
    size = record_bytes_of(config, facts, low)
    return (
        replace(one, fraction=1 - low_bits_fraction),
        _Kind(low, size, total, least, low_bits_fraction),
    )


def _elastic_slots(config: EngineConfig, facts: ModelFacts, kind: _Kind, slots: int) -> int:
    """The number of slots that fit into empty KV memory."""
    if not config.kv.elastic:
        return 0
    return min(kv_growing_bytes(config, facts) // kind.record_bytes, kind.experts - slots)


def _capacity(config: EngineConfig, kinds: Sequence[_Kind], free_bytes: int) -> int:
    """Bytes for slots that the config requests. free_bytes: what the budget leaves, if any."""
    wanted = config.cache.expert_bytes
    if wanted == "auto":
        everything = sum(kind.record_bytes * kind.experts for kind in kinds)
        return min(everything, free_bytes) if config.budget.vram_bytes else everything
    if isinstance(wanted, str):
        fraction = float(wanted.rstrip("%")) / 100
        if len(kinds) == 1:
            return int(kinds[0].experts * fraction + 1e-9) * kinds[0].record_bytes
        own = [kinds[0]] if config.precision.scheme not in PLANNED else kinds
        return int(sum(kind.record_bytes * kind.experts for kind in own) * fraction)
    return wanted


def _fill(kinds: Sequence[_Kind], capacity: int) -> list[int]:
    """Slots of each kind within the capacity, which is at least the sum of their minima.

    The kinds are filled by their fractions; the rest goes to whatever still fits, the highest
    precision first.
    """
    counts = [
        min(kind.experts, max(kind.least, int(capacity * kind.fraction) // kind.record_bytes))
        for kind in kinds
    ]

    def left() -> int:
        return capacity - sum(
            k.record_bytes * count for k, count in zip(kinds, counts, strict=True)
        )

    while left() < 0:
        able = [n for n, kind in enumerate(kinds) if counts[n] > kind.least]
        counts[max(able, key=lambda n: counts[n])] -= 1
    for number, kind in enumerate(kinds):
        counts[number] += min(kind.experts - counts[number], left() // kind.record_bytes)
    return counts


def minimum_slots(config: EngineConfig, facts: ModelFacts) -> int:
    """The fewest slots that run: one per layer, or two if all layers share them."""
    return 2 if _shares_slots(config) else facts.moe_layers


def _shares_slots(config: EngineConfig) -> bool:
    """Whether all layers take their slots from the same pools."""
    return config.cache.scope == "shared" or config.cache.eviction == "none"


def slots_by_layer(slots: int, layers: int) -> tuple[int, ...]:
    """Uniform allocation: as even as possible, the remainder to the first layers."""
    return tuple(slots // layers + (1 if layer < slots % layers else 0) for layer in range(layers))


def _resolve_prequantized(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
    """Set the bits of a pre-quantized checkpoint's codes; 16 if the checkpoint is not quantized."""
    if not config.precision.prequantized:
        return config
    if facts.prequantized is None:
        return config.overlay({"precision.bits": 16})
    return config.overlay(
        {"precision.bits": facts.prequantized.bits, "precision.prequantized": True}
    )


def _resolve_group(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
    if config.precision.low_bits:
        low = resolve_group_size(facts.parts, config.precision.low_group_size)
        if not low and config.precision.low_bits != 8:
            raise ConfigError(
                f"precision.low_bits = {config.precision.low_bits} does not suit this model's "
                "expert shapes: set it to 8 or 0"
            )
        config = config.overlay({"precision.low_group_size": low}) if low else config
    bits = config.precision.bits
    if config.precision.prequantized:
        return config
    group = resolve_group_size(facts.parts, config.precision.group_size)
    if bits not in supported_bits(facts.parts, config.precision.group_size):
        allowed = ", ".join(map(str, supported_bits(facts.parts, 128)))
        raise ConfigError(
            f"precision.bits = {bits} does not suit this model's expert shapes with groups of at "
            f"most {config.precision.group_size}; possible are {allowed}"
        )
    config = config.overlay({"precision.group_size": group}) if group else config
    table = bits_table(config, facts)
    if table is None:
        return config
    return config.overlay({"precision.bits": max(map(max, table))})


def _base_plan(config: EngineConfig, facts: ModelFacts, record: int) -> MemoryPlan:
    width = DTYPE_BYTES[config.compute.dtype]
    tokens = config.kv.max_tokens
    chunk = min(config.prefill.chunk_tokens, tokens) * config.batch.size
    non_expert = _non_expert_bytes(config, facts)
    kv = kv_bytes(config, facts) + prefix_bytes(config, facts)
    expert_width = max((p.rows for p in facts.parts if p.kind == "matrix"), default=0)
    activations = (
        chunk
        * width
        * (facts.hidden_size * (8 + facts.experts_per_token) + 3 * expert_width)
        * max(1, config.batch.count // 2)
    )
    logits = 8 * facts.vocabulary * config.batch.size
    index = _INDEX_BYTES_PER_TENSOR * facts.moe_layers * facts.experts * (len(facts.parts) + 1)
    matrix = max((p.elements for p in facts.parts if p.kind == "matrix"), default=0)
    scratch = 4 * matrix * 2  # products of several tokens repack the weights
    # One matrix at a time is dequantized: codes, one float32 copy, the result.
    coarse = any(bits != 16 for bits in run_bits(config))
    dequantized = matrix * (4 + 1 + width) if coarse or width == 4 else 0
    block = _non_expert_block_elements(config, facts) * (4 + 1 + width)
    dequantized = max(dequantized, block)
    captured = 0 if _on_host(config) else capture_bytes(config, facts, block)
    depth = config.prefetch.depth if config.prefetch.predictor in _STACKING else 0
    stacks = (
        facts.moe_layers * depth * facts.experts * facts.hidden_size * width if depth > 1 else 0
    )
    kv_growth = kv_growth_bytes(config, facts)
    return MemoryPlan(
        slots=0,
        slots_bytes=0,
        non_expert_bytes=non_expert,
        kv_bytes=kv,
        workspace_bytes=(
            activations
            + logits
            + dequantized
            + kv_growth
            + index
            + scratch
            + context_bytes(config)
            + stacks
            + captured
            + FIXED_WORKSPACE_BYTES
        ),
        staging_bytes=config.io.threads * (record + 2 * RECORD_ALIGN * len(facts.parts)),
        correction_bytes=config.device.correction_bytes,
    )


def context_bytes(config: EngineConfig) -> int:
    """Memory of the driver's context on the config's device: measured, else an estimate; 0 if that
    is host memory."""
    return 0 if _on_host(config) else config.device.context_bytes or CONTEXT_BYTES


def _on_host(config: EngineConfig) -> bool:
    return config.device.name in ("cpu", "auto") or config.device.name.startswith(PREFIX)


def _non_expert_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Bytes of the non-expert weights on the device: linear layers at their bits, embeddings if
    there."""
    width, bits = DTYPE_BYTES[config.compute.dtype], config.precision.non_expert_bits
    total = facts.non_expert_bytes * width // 2
    if bits != 16:
        for matrix in facts.non_expert_matrices:
            total += non_expert_matrix_bytes(matrix, bits, config.precision.group_size)
            total -= matrix.occurrences * matrix.rows * matrix.columns * width
    if config.placement.embeddings == "host" and not _on_host(config):
        total -= facts.embedding_bytes * width // 2
    return total


def _non_expert_block_elements(config: EngineConfig, facts: ModelFacts) -> int:
    """Elements of the largest block of the non-expert weights that is dequantized at once."""
    if config.precision.non_expert_bits == 16:
        return 0
    matrices = facts.non_expert_matrices
    return max((block_rows(m.rows, m.columns)[0] * m.columns for m in matrices), default=0)

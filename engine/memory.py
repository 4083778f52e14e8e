"""The memory equation: what a configuration needs on the device, and what fits a budget.

`resolve` makes every automatic choice of a config from model facts alone, so that the tuner can
say "does not fit" before anything runs. Pure arithmetic.
"""

from __future__ import annotations

from engine.config import EngineConfig
from engine.dense import block_rows, dense_matrix_bytes
from engine.emulation import PREFIX
from engine.errors import ConfigError, InfeasibleError
from engine.protocol import MemoryPlan, ModelFacts
from engine.published import published_layout
from engine.records import (
    RECORD_ALIGN,
    RecordLayout,
    record_layout,
    resolve_group_size,
    supported_bits,
)
from engine.types import Bits, format_bytes

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}

# Code pages, allocator slack and kernel scratch that a run touches beyond what is counted below;
# measured on the reference machine (docs/lab.md, "memory equation").
FIXED_WORKSPACE_BYTES = 34_000_000
_STACKING = ("next_gate", "pregate")  # these keep copies of the routers of several layers
_INDEX_BYTES_PER_TENSOR = 2_500  # names and places of an expert's tensors, as Python objects


# What a driver's context holds on an accelerator before any tensor: commonly seen for CUDA, not
# measured here.
CONTEXT_BYTES = 500_000_000


def resolve(config: EngineConfig, facts: ModelFacts) -> tuple[EngineConfig, MemoryPlan]:
    """Make every automatic choice and check the budget.

    Returns the complete config (expert_bytes in bytes, a group size that divides) and its memory.
    Raises InfeasibleError with the smallest budget that would fit this precision and batch, and
    ConfigError where the model's shapes do not allow the precision.
    """
    config = _resolve_group(_resolve_native(config, facts), facts)
    record = record_bytes(config, facts)
    base = _base_plan(config, facts, record)
    total_slots = facts.moe_layers * facts.experts
    floor = minimum_slots(config, facts)
    budget = config.budget.vram_bytes
    smallest = base.total_bytes + floor * record
    if budget and smallest > budget:
        raise InfeasibleError(
            f"{config.precision.bits}-bit experts with {config.batch.count} x {config.batch.size} "
            f"sequences need at least {format_bytes(smallest)} ({smallest} bytes), the budget is "
            f"{format_bytes(budget)}: give more memory, fewer bits or shorter sequences",
            smallest,
        )
    if config.budget.ram_bytes and config.host.bytes > config.budget.ram_bytes:
        raise InfeasibleError(
            f"host.bytes = {config.host.bytes} passes the RAM budget of "
            f"{format_bytes(config.budget.ram_bytes)}: lower it or raise --ram"
        )
    wanted = config.cache.expert_bytes
    if wanted == "auto":
        fitting = (budget - base.total_bytes) // record if budget else total_slots
        slots = min(total_slots, fitting)
    else:
        slots = min(total_slots, _wanted_slots(wanted, total_slots, record))
        if slots < floor:
            raise InfeasibleError(
                f"cache.expert_bytes = {wanted} holds {slots} experts of {record} bytes; this "
                f"model needs at least {floor} slots ({format_bytes(floor * record)})",
                smallest,
            )
    plan = _with_slots(base, slots, record)
    if budget and plan.total_bytes > budget:
        raise InfeasibleError(
            f"cache.expert_bytes = {wanted} brings the total to {format_bytes(plan.total_bytes)}, "
            f"the budget is {format_bytes(budget)}: lower cache.expert_bytes or raise the budget",
            plan.total_bytes,
        )
    return config.overlay({"cache.expert_bytes": slots * record}), plan


def record_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Padded bytes of one record at this config's precision."""
    return config_layout(config, facts, config.precision.bits).size_bytes


def config_layout(config: EngineConfig, facts: ModelFacts, bits: Bits) -> RecordLayout:
    """The record of a resolved config at its own or its low bits."""
    own = bits == config.precision.bits
    if own and config.precision.native:
        assert facts.published is not None, "native is resolved"
        return published_layout(facts.parts, facts.published)
    group = config.precision.group_size if own else config.precision.low_group_size
    return record_layout(facts.parts, bits, group)


def record_bytes_of(config: EngineConfig, facts: ModelFacts, bits: Bits) -> int:
    """Padded bytes of one record of a resolved config, at its own or its low bits."""
    return config_layout(config, facts, bits).size_bytes


def minimum_slots(config: EngineConfig, facts: ModelFacts) -> int:
    """The fewest slots that run at all: one a layer, or two where all layers share them."""
    shared = config.cache.scope == "shared" or config.cache.eviction == "none"
    return 2 if shared else facts.moe_layers


def slots_by_layer(slots: int, layers: int) -> tuple[int, ...]:
    """Uniform allocation: as even as whole slots allow, the remainder to the first layers."""
    return tuple(slots // layers + (1 if layer < slots % layers else 0) for layer in range(layers))


def _resolve_native(config: EngineConfig, facts: ModelFacts) -> EngineConfig:
    """The bits of the published codes; a checkpoint that is not quantized is native at 16."""
    if not config.precision.native:
        return config
    if facts.published is None:
        return config.overlay({"precision.bits": 16})
    return config.overlay({"precision.bits": facts.published.bits, "precision.native": True})


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
    if config.precision.native:
        return config
    group = resolve_group_size(facts.parts, config.precision.group_size)
    if bits not in supported_bits(facts.parts, config.precision.group_size):
        allowed = ", ".join(map(str, supported_bits(facts.parts, 128)))
        raise ConfigError(
            f"precision.bits = {bits} does not suit this model's expert shapes with groups of at "
            f"most {config.precision.group_size}; possible are {allowed}"
        )
    return config.overlay({"precision.group_size": group}) if group else config


def _wanted_slots(wanted: int | str, total_slots: int, record: int) -> int:
    if isinstance(wanted, str):
        return int(total_slots * float(wanted.rstrip("%")) / 100 + 1e-9)
    return wanted // record


def _base_plan(config: EngineConfig, facts: ModelFacts, record: int) -> MemoryPlan:
    width = DTYPE_BYTES[config.compute.dtype]
    sequences = config.batch.count * config.batch.size
    tokens = config.kv.max_tokens
    chunk = min(config.prefill.chunk_tokens, tokens) * config.batch.size
    dense = _dense_bytes(config, facts)
    kv = facts.kv_bytes_per_token * width // 2 * tokens * sequences
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
    dequantized = matrix * (4 + 1 + width) if config.precision.bits != 16 or width == 4 else 0
    dequantized = max(dequantized, _dense_block_elements(config, facts) * (4 + 1 + width))
    context = 0 if _on_host(config) else CONTEXT_BYTES
    depth = config.prefetch.depth if config.prefetch.predictor in _STACKING else 0
    stacks = (
        facts.moe_layers * depth * facts.experts * facts.hidden_size * width if depth > 1 else 0
    )
    kv_growth = kv // max(1, facts.layers) * 2
    return MemoryPlan(
        slots=0,
        slots_bytes=0,
        dense_bytes=dense,
        kv_bytes=kv,
        workspace_bytes=(
            activations
            + logits
            + dequantized
            + kv_growth
            + index
            + scratch
            + context
            + stacks
            + FIXED_WORKSPACE_BYTES
        ),
        staging_bytes=config.io.threads * (record + 2 * RECORD_ALIGN * len(facts.parts)),
    )


def _on_host(config: EngineConfig) -> bool:
    return config.device.name in ("cpu", "auto") or config.device.name.startswith(PREFIX)


def _dense_bytes(config: EngineConfig, facts: ModelFacts) -> int:
    """Everything that is no expert: linear layers at their bits, embeddings where they lie."""
    width, bits = DTYPE_BYTES[config.compute.dtype], config.precision.dense_bits
    total = facts.dense_bytes * width // 2
    if bits != 16:
        for matrix in facts.dense_matrices:
            total += dense_matrix_bytes(matrix, bits, config.precision.group_size)
            total -= matrix.occurrences * matrix.rows * matrix.columns * width
    if config.placement.embeddings == "host" and not _on_host(config):
        total -= facts.embedding_bytes * width // 2
    return total


def _dense_block_elements(config: EngineConfig, facts: ModelFacts) -> int:
    """The largest block of the dense part that is dequantized at once."""
    if config.precision.dense_bits == 16:
        return 0
    matrices = facts.dense_matrices
    return max((block_rows(m.rows, m.columns)[0] * m.columns for m in matrices), default=0)


def _with_slots(base: MemoryPlan, slots: int, record: int) -> MemoryPlan:
    return MemoryPlan(
        slots=slots,
        slots_bytes=slots * record,
        dense_bytes=base.dense_bytes,
        kv_bytes=base.kv_bytes,
        workspace_bytes=base.workspace_bytes,
        staging_bytes=base.staging_bytes,
    )

"""Every mechanism by name: `name -> factory`.

Predictors and evictions are registered in engine.config.choices, the others here under the names of
engine.types; the conformance suites run over all of them. No name of a published system appears: a
system is a preset over these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.config import choices
from engine.config.choices import Registered
from engine.errors import ConfigError
from engine.policy.allocate import (
    Allocation,
    MissAllocation,
    ProfileAllocation,
    ShallowFirstAllocation,
    UniformAllocation,
)
from engine.policy.batch_plan import FixedPlan, IoComputePlan, Plan
from engine.policy.compute_order import (
    HotFirstOrder,
    Order,
    PopularityOrder,
    ReadyFirstOrder,
    RoutedOrder,
)
from engine.policy.context import PolicyContext
from engine.policy.evict.base import Eviction
from engine.policy.expert_cache import ExpertCache
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.options import flag, whole
from engine.policy.placement import (
    DevicePlacement,
    EarliestEnd,
    HostBelow,
    HostSplit,
    Placement,
)
from engine.policy.pools import Pool, pools_of_layers, split_by_experts
from engine.policy.precision import (
    GateThreshold,
    PlannedPrecision,
    PopularityMass,
    PrecisionPolicy,
    UniformPrecision,
)
from engine.policy.predict.base import Predictor
from engine.policy.transfer_queue import FifoQueue, TransferQueue, TwoPriorityQueue
from engine.precision.table import bits_table
from engine.types import (
    BITS,
    AllocationName,
    Bits,
    OrderName,
    PlacementName,
    PlanName,
    PrecisionName,
    QueueName,
)

EVICTIONS: Mapping[str, Callable[[PolicyContext], Eviction]] = Registered(choices.EVICTIONS)
ALLOCATIONS: dict[AllocationName, Callable[[PolicyContext], Allocation]] = {
    "uniform": lambda context: UniformAllocation(),
    "shallow_first": lambda context: ShallowFirstAllocation(context.config.cache.shallow_layers),
    "by_misses": lambda context: MissAllocation(context.history),
    "by_profile": lambda context: ProfileAllocation(context.history),
}
PREDICTORS: Mapping[str, Callable[[PolicyContext], Predictor]] = Registered(choices.PREDICTORS)
ORDERS: dict[OrderName, Callable[[], Order]] = {
    "routed": RoutedOrder,
    "popularity": PopularityOrder,
    "ready_first": ReadyFirstOrder,
    "hot_first": HotFirstOrder,
}
QUEUES: dict[QueueName, Callable[[], TransferQueue[Any]]] = {
    "fifo": FifoQueue,
    "two_priority": TwoPriorityQueue,
}
PLACEMENTS: dict[PlacementName, Callable[[PolicyContext], Placement]] = {
    "device": lambda context: DevicePlacement(),
    "host_below": lambda context: HostBelow(context.config.placement.host_tokens),
    "host_split": lambda context: HostSplit(1.0 - _host_fraction(context)),
    "earliest": lambda context: EarliestEnd(_host_ratios(context)),
}
PLANS: dict[PlanName, Callable[[], Plan]] = {
    "fixed": FixedPlan,
    "io_compute": IoComputePlan,
}


def _host_fraction(context: PolicyContext) -> float:
    fraction = context.config.placement.host_fraction
    if fraction == "auto":
        raise ConfigError(
            "placement.host_fraction = auto was not resolved: give a number from 0 to 1"
        )
    return float(fraction)


def _host_ratios(context: PolicyContext) -> dict[int, float]:
    given = context.config.placement.options.get("host_ratios")
    try:
        found = {int(tokens): float(ratio) for tokens, ratio in dict(given or {}).items()}
    except (TypeError, ValueError):
        found = {}
    if not found or not all(0 < ratio < float("inf") for ratio in found.values()):
        raise ConfigError(
            f"placement.options.host_ratios = {given!r}: write the seconds of an expert on the "
            "host over those of its transfer by tokens, such as {1: 0.3, 64: 4}, or leave it out: "
            "then they are measured"
        )
    return found


def _popularity_mass(context: PolicyContext) -> PrecisionPolicy:
    precision = context.config.precision
    miss_bits = int(precision.options.get("decode_miss_bits", precision.bits))
    return PopularityMass(
        precision.bits, _low(context), precision.low_mass, miss_bits != precision.bits
    )


def _gate_threshold(context: PolicyContext) -> PrecisionPolicy:
    precision = context.config.precision
    return GateThreshold(
        precision.bits, _low(context), precision.low_bits_threshold, precision.skip_threshold
    )


def _planned(context: PolicyContext) -> PrecisionPolicy:
    table = bits_table(context.config, context.facts)
    assert table is not None, "a plan of precisions has its table when a config is resolved"
    return PlannedPrecision(table, context.config.precision.bits)


def _low(context: PolicyContext) -> Bits:
    precision = context.config.precision
    if precision.low_bits == 0 or precision.low_bits >= precision.bits:
        raise ConfigError(
            f"precision.scheme = {precision.scheme} needs precision.low_bits below "
            f"precision.bits = {precision.bits}: set it to 2, 3, 4 or 8"
        )
    return precision.low_bits


PRECISIONS: dict[PrecisionName, Callable[[PolicyContext], PrecisionPolicy]] = {
    "uniform": lambda context: UniformPrecision(context.config.precision.bits),
    "by_layer": _planned,
    "by_popularity": _planned,
    "by_sensitivity": _planned,
    "popularity_mass": _popularity_mass,
    "gate_threshold": _gate_threshold,
}


def build_pools(context: PolicyContext, slots: int | Mapping[Bits, int]) -> tuple[Pool, ...]:
    """Split the slots of a resolved config into pools.

    slots: of all records, or by bits, if records of different sizes have separate slots.
    """
    config = context.config
    shared = config.cache.scope == "shared" or not EVICTIONS[config.cache.eviction](context).keeps
    allocation = ALLOCATIONS[config.cache.allocation](context)

    def split(count: int, bits: Sequence[Bits]) -> tuple[Pool, ...]:
        if shared:
            return (Pool(None, tuple(bits), count),)
        return pools_of_layers(allocation.allocate(count, context.layers, context.experts), bits)

    if isinstance(slots, int):
        return split(slots, BITS)
    table = bits_table(config, context.facts)
    if table is None:
        return tuple(pool for bits, count in slots.items() for pool in split(count, (bits,)))
    pools: list[Pool] = []
    for bits, count in slots.items():
        if shared:
            pools.append(Pool(None, (bits,), count))
            continue
        experts = {layer: row.count(bits) for layer, row in enumerate(table) if bits in row}
        fractions = split_by_experts(count, experts)
        pools.extend(Pool(layer, (bits,), fraction) for layer, fraction in fractions.items())
    return tuple(pools)


def build_policy(
    context: PolicyContext,
    slots: int | Mapping[Bits, int],
    *,
    host_compute: bool,
    elastic: int = 0,
) -> ExpertPolicy:
    """The policy of a resolved config over its slots, see build_pools.

    elastic: the number of elastic slots among `slots` (kv.elastic), all closed at first;
    host_compute: whether device and host are two memories; if they are one, placement has no
    effect. Raises ConfigError if options contradict each other.
    """
    config = context.config
    pools = build_pools(context, slots)
    cache = ExpertCache(
        pools,
        lambda: EVICTIONS[config.cache.eviction](context),
        layers=context.layers,
        high=config.precision.bits,
        hold_predicted=flag(config.cache.options, "cache.options.hold_predicted"),
        elastic=_elastic_by_pool(context, pools, slots, elastic),
    )
    cache.open_elastic(0.0)
    return ExpertPolicy(
        cache,
        PREDICTORS[config.prefetch.predictor](context),
        PRECISIONS[config.precision.scheme](context),
        PLACEMENTS[config.placement.name if host_compute else "device"](context),
        context.future,
        stop_at_miss=flag(config.prefetch.options, "prefetch.options.stop_at_miss"),
        limit=whole(config.prefetch.options, "prefetch.options.limit", 0, 0, 10_000),
    )


def _elastic_by_pool(
    context: PolicyContext, pools: Sequence[Pool], slots: int | Mapping[Bits, int], elastic: int
) -> list[int]:
    """Number of elastic slots of each pool: its slots beyond its part of the fixed ones."""
    if not elastic:
        return []
    assert isinstance(slots, int), "elastic slots are of one size"
    fixed = build_pools(context, slots - elastic)
    return [max(0, pool.slots - own.slots) for pool, own in zip(pools, fixed, strict=True)]

"""Every mechanism by name: `name -> factory`. A new implementation is one entry here.

The names are the ones of engine.types, so that the tuner knows them without importing policies; a
test holds both equal, and the conformance suites run over these dicts. No name of a published
system appears: a system is a preset over these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.errors import ConfigError
from engine.policy.allocate import Allocation, UniformAllocation
from engine.policy.context import PolicyContext
from engine.policy.evict.base import Eviction
from engine.policy.evict.lru import LruEviction, NoCacheEviction
from engine.policy.expert_cache import ExpertCache
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.order import HotFirstOrder, Order, PopularityOrder, ReadyFirstOrder, RoutedOrder
from engine.policy.place import DevicePlacement, HostBelow, HostSplit, Placement
from engine.policy.plan import FixedPlan, IoComputePlan, Plan
from engine.policy.precision import (
    GateThreshold,
    PopularityMass,
    PrecisionPolicy,
    UniformPrecision,
)
from engine.policy.predict.base import Predictor
from engine.policy.predict.next_gate import NextGatePredictor
from engine.policy.predict.none import NoPredictor
from engine.policy.transfer import FifoQueue, TransferQueue, TwoPriorityQueue
from engine.types import (
    AllocationName,
    Bits,
    EvictionName,
    OrderName,
    PlacementName,
    PlanName,
    PrecisionName,
    PredictorName,
    QueueName,
)

EVICTIONS: dict[EvictionName, Callable[[PolicyContext], Eviction]] = {
    "lru": lambda context: LruEviction(),
    "none": lambda context: NoCacheEviction(),
}
ALLOCATIONS: dict[AllocationName, Callable[[PolicyContext], Allocation]] = {
    "uniform": lambda context: UniformAllocation(),
}
PREDICTORS: dict[PredictorName, Callable[[PolicyContext], Predictor]] = {
    "none": lambda context: NoPredictor(),
    "next_gate": lambda context: NextGatePredictor(
        context.layers,
        context.chosen,
        context.config.prefetch.depth,
        context.config.prefetch.extra_experts,
    ),
}
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
    "host_split": lambda context: HostSplit(1.0 - context.config.placement.host_share),
}
PLANS: dict[PlanName, Callable[[], Plan]] = {
    "fixed": FixedPlan,
    "io_compute": IoComputePlan,
}


def _popularity_mass(context: PolicyContext) -> PrecisionPolicy:
    precision = context.config.precision
    miss_bits = int(precision.options.get("decode_miss_bits", precision.bits))
    return PopularityMass(
        precision.bits, _low(context), precision.low_mass, miss_bits != precision.bits
    )


def _gate_threshold(context: PolicyContext) -> PrecisionPolicy:
    precision = context.config.precision
    return GateThreshold(precision.bits, _low(context), precision.t1, precision.t2)


def _low(context: PolicyContext) -> Bits:
    precision = context.config.precision
    if precision.low_bits not in (8, 4, 2) or precision.low_bits >= precision.bits:
        raise ConfigError(
            f"precision.scheme = {precision.scheme} needs precision.low_bits below "
            f"precision.bits = {precision.bits}: set it to 2, 4 or 8"
        )
    return precision.low_bits


PRECISIONS: dict[PrecisionName, Callable[[PolicyContext], PrecisionPolicy]] = {
    "uniform": lambda context: UniformPrecision(context.config.precision.bits),
    "popularity_mass": _popularity_mass,
    "gate_threshold": _gate_threshold,
}


def build_policy(context: PolicyContext, slots: int, *, host_compute: bool) -> ExpertPolicy:
    """The policy of a resolved config over `slots` slots.

    host_compute: whether device and host are two memories; where they are one, placement has no
    effect. Raises ConfigError where options contradict each other.
    """
    config = context.config
    make_eviction = EVICTIONS[config.cache.eviction]
    shared = config.cache.scope == "shared" or not make_eviction(context).keeps
    allocation = ALLOCATIONS[config.cache.allocation](context)
    pools = (slots,) if shared else allocation.allocate(slots, context.layers, context.experts)
    cache = ExpertCache(
        pools,
        lambda: make_eviction(context),
        layers=context.layers,
        high=config.precision.bits,
        hold_predicted=bool(config.cache.options.get("hold_predicted", False)),
    )
    return ExpertPolicy(
        cache,
        PREDICTORS[config.prefetch.predictor](context),
        PRECISIONS[config.precision.scheme](context),
        PLACEMENTS[config.placement.name if host_compute else "device"](context),
        context.future,
        stop_at_miss=bool(config.prefetch.options.get("stop_at_miss", False)),
        limit=int(config.prefetch.options.get("limit", 0)),
    )

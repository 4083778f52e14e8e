"""Every mechanism by name: `name -> factory`. A new implementation is one entry here.

The names are the ones of engine.types, so that the tuner knows them without importing policies; a
test holds both equal, and the conformance suites run over these dicts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.config import EngineConfig
from engine.policy.allocate import Allocation, UniformAllocation
from engine.policy.evict.base import Eviction
from engine.policy.evict.lru import LruEviction, NoCacheEviction
from engine.policy.order import Order, ReadyFirstOrder, RoutedOrder
from engine.policy.place import DevicePlacement, Placement
from engine.policy.plan import FixedPlan, Plan
from engine.policy.precision import PrecisionPolicy, UniformPrecision
from engine.policy.predict.base import Predictor
from engine.policy.predict.next_gate import NextGatePredictor
from engine.policy.predict.none import NoPredictor
from engine.policy.transfer import FifoQueue, TransferQueue, TwoPriorityQueue
from engine.protocol import ModelFacts
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

EVICTIONS: dict[EvictionName, Callable[[], Eviction]] = {
    "lru": LruEviction,
    "none": NoCacheEviction,
}
ALLOCATIONS: dict[AllocationName, Callable[[], Allocation]] = {"uniform": UniformAllocation}
ORDERS: dict[OrderName, Callable[[], Order]] = {
    "routed": RoutedOrder,
    "ready_first": ReadyFirstOrder,
}
QUEUES: dict[QueueName, Callable[[], TransferQueue[Any]]] = {
    "fifo": FifoQueue,
    "two_priority": TwoPriorityQueue,
}
PLACEMENTS: dict[PlacementName, Callable[[], Placement]] = {"device": DevicePlacement}
PLANS: dict[PlanName, Callable[[], Plan]] = {"fixed": FixedPlan}
PRECISIONS: dict[PrecisionName, Callable[[Bits], PrecisionPolicy]] = {"uniform": UniformPrecision}


def _next_gate(config: EngineConfig, facts: ModelFacts) -> Predictor:
    return NextGatePredictor(
        facts.moe_layers,
        facts.experts_per_token,
        config.prefetch.depth,
        config.prefetch.extra_experts,
    )


PREDICTORS: dict[PredictorName, Callable[[EngineConfig, ModelFacts], Predictor]] = {
    "none": lambda config, facts: NoPredictor(),
    "next_gate": _next_gate,
}

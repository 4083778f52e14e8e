"""Every registered policy keeps its contract; registering one is testing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import types
from engine.config import EngineConfig
from engine.policy import registry
from engine.policy.expert_cache import ExpertCache, Step
from engine.policy.predict.next_gate import rank_by_count
from engine.types import ExpertId
from tests.engine.test_memory import make_facts

LAYERS = 3
EXPERTS = 8
Access = list[tuple[int, list[list[int]], list[int]]]

# (layer, demands of each micro-batch, experts predicted for the layer after it)
accesses = st.lists(
    st.tuples(
        st.integers(0, LAYERS - 1),
        st.lists(
            st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=5), min_size=1, max_size=3
        ),
        st.lists(st.integers(0, EXPERTS - 1), max_size=5),
    ),
    max_size=30,
)


@pytest.mark.parametrize(
    ("names", "registered"),
    [
        (types.EvictionName, registry.EVICTIONS),
        (types.AllocationName, registry.ALLOCATIONS),
        (types.OrderName, registry.ORDERS),
        (types.QueueName, registry.QUEUES),
        (types.PlacementName, registry.PLACEMENTS),
        (types.PlanName, registry.PLANS),
        (types.PrecisionName, registry.PRECISIONS),
        (types.PredictorName, registry.PREDICTORS),
    ],
)
def test_registered_names_are_the_names_that_configs_allow(
    names: Any, registered: dict[str, Any]
) -> None:
    assert set(get_args(names)) == set(registered)


@pytest.mark.parametrize("eviction", registry.EVICTIONS)
@pytest.mark.parametrize("scope", ["layer", "shared"])
@given(stream=accesses, slots=st.integers(1, EXPERTS))
@settings(max_examples=60, deadline=None)
def test_a_cache_serves_every_demand_once_within_its_slots(
    eviction: Any, scope: str, stream: Access, slots: int
) -> None:
    pools = [slots] * LAYERS if scope == "layer" else [slots]
    cache = ExpertCache(pools, registry.EVICTIONS[eviction], layers=LAYERS)
    for layer, demands, predicted in stream:
        before = set(cache.residents(layer))
        cache.begin(layer)
        steps: list[Step] = []
        for demand in demands:
            steps.extend(cache.demand(demand))
            fetches = cache.prefetch((layer + 1) % LAYERS, predicted)
            pinned = {step.slot for step in steps}
            assert not pinned & {fetch.slot for fetch in fetches}, "a pinned slot was taken"
        steps.extend(cache.finish())
        wanted = {ExpertId(layer, index) for demand in demands for index in demand}
        assert {step.expert for step in steps} == wanted
        assert len(steps) == len(wanted), "an expert was scheduled twice"
        assert all(step.expert in before for step in steps if step.hit and scope == "layer")
        check_slot_use(steps)
        cache.end()
        cache.check_integrity()
        if not registry.EVICTIONS[eviction]().keeps:
            assert not wanted & set(cache.residents(layer))


def check_slot_use(steps: list[Step]) -> None:
    """A slot has one expert at a time: whoever takes it over waits for its last tenant."""
    tenant: dict[int, ExpertId] = {}
    for step in steps:
        if step.slot in tenant:
            assert step.after == tenant[step.slot]
        else:
            assert step.after is None
        tenant[step.slot] = step.expert


def test_lru_evicts_the_expert_unused_for_longest() -> None:
    lru = registry.EVICTIONS["lru"]()
    a, b, c = (ExpertId(0, index) for index in range(3))
    for expert in (a, b, c, a):
        lru.use(expert)
    assert lru.victim([a, b, c]) == b


def test_residents_are_computed_before_they_give_way_to_waves() -> None:
    cache = ExpertCache([2], registry.EVICTIONS["lru"], layers=1)
    cache.begin(0)
    cache.demand([0, 1])
    cache.finish()
    cache.end()
    cache.begin(0)
    steps = [*cache.demand([2, 3]), *cache.demand([0, 1]), *cache.finish()]
    cache.end()
    assert [step.expert.expert for step in steps if step.hit] == [0, 1]


@pytest.mark.parametrize("name", registry.QUEUES)
@given(
    actions=st.lists(
        st.tuples(st.sampled_from(["push", "urgent", "promote", "demote", "remove", "pop"]),
                  st.integers(0, 6)),
        max_size=60,
    )
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_queue_loses_and_doubles_nothing(name: Any, actions: list[tuple[str, int]]) -> None:
    queue = registry.QUEUES[name]()
    inside: set[int] = set()
    for action, key in actions:
        if action in ("push", "urgent"):
            if key not in inside:
                queue.push(key, urgent=action == "urgent")
                inside.add(key)
        elif action == "pop":
            head = queue.head()
            assert (head is None) == (not inside)
            if head is not None:
                assert queue.remove(head)
                inside.remove(head)
        elif action == "remove":
            assert queue.remove(key) == (key in inside)
            inside.discard(key)
        else:
            getattr(queue, action)(key)
        assert len(queue) == len(inside)


def test_two_priorities_serve_demands_first_and_stale_predictions_last() -> None:
    queue = registry.QUEUES["two_priority"]()
    queue.push("stale", urgent=False)
    queue.push("predicted", urgent=False)
    queue.push("raised", urgent=False)
    queue.push("demanded", urgent=True)
    queue.demote("stale")
    queue.promote("raised")
    order = []
    while (head := queue.head()) is not None:
        order.append(head)
        queue.remove(head)
    assert order == ["demanded", "raised", "predicted", "stale"]


@pytest.mark.parametrize("name", registry.ALLOCATIONS)
@given(slots=st.integers(LAYERS, 100))
def test_an_allocation_spends_every_slot_and_starves_no_layer(name: Any, slots: int) -> None:
    shares = registry.ALLOCATIONS[name]().allocate(slots, LAYERS)
    assert sum(shares) == slots
    assert len(shares) == LAYERS
    assert min(shares) >= 1


@pytest.mark.parametrize("name", registry.ORDERS)
@given(ready=st.sets(st.integers(0, 5)))
def test_an_order_ends_with_every_step_run(name: Any, ready: set[int]) -> None:
    order = registry.ORDERS[name]()
    pending = [Step(ExpertId(0, index), index, hit=False) for index in range(6)]
    while pending:
        arrived = frozenset(ready)
        step = order.next(pending, lambda s, arrived=arrived: s.slot in arrived)  # type: ignore[misc]
        if step is None:
            ready = ready | {min(s.slot for s in pending)}
            continue
        pending.remove(step)


class FixedScorer:
    """Answers every layer with the same choices."""

    def __init__(self, choices: list[list[int]]) -> None:
        self.asked: list[tuple[int, int]] = []
        self._choices = choices

    def top_experts(self, layer: int, count: int) -> list[list[int]]:
        self.asked.append((layer, count))
        return [choice[:count] for choice in self._choices]


@pytest.mark.parametrize("name", registry.PREDICTORS)
@pytest.mark.parametrize("depth", [0, 1, 4])
def test_a_predictor_hints_only_at_later_layers_of_the_model(name: Any, depth: int) -> None:
    facts = make_facts()
    config = EngineConfig().overlay({"prefetch.depth": depth, "prefetch.extra_experts": 1})
    predictor = registry.PREDICTORS[name](config, facts)
    scorer = FixedScorer([[3, 1, 2, 5], [1, 4, 3, 6]])
    for layer in range(facts.moe_layers):
        predictor.observe(layer, [[0, 1]])
        for prediction in predictor.predict(layer, scorer):
            assert layer < prediction.layer < facts.moe_layers
            assert prediction.layer <= layer + depth
            assert len(set(prediction.experts)) == len(prediction.experts)


def test_next_gate_asks_for_k_and_the_extra_experts_and_ranks_by_count() -> None:
    config = EngineConfig().overlay({"prefetch.depth": 1, "prefetch.extra_experts": 1})
    predictor = registry.PREDICTORS["next_gate"](config, make_facts())
    scorer = FixedScorer([[3, 1, 2], [1, 4, 2]])
    (prediction,) = predictor.predict(0, scorer)
    assert scorer.asked == [(1, 3)]
    assert prediction.experts == (1, 2, 3, 4)
    assert rank_by_count([]) == ()


def test_the_trivial_mechanisms_decide_what_their_name_says() -> None:
    make: Callable[[], Any] = registry.PLACEMENTS["device"]
    assert make().place(ExpertId(0, 0), 1, resident=False) == "device"
    assert registry.PRECISIONS["uniform"](4).bits(ExpertId(0, 0), "miss") == 4
    config = EngineConfig()
    assert registry.PLANS["fixed"]().plan(config, None) == config

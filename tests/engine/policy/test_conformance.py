"""Every registered policy keeps its contract; registering one is testing it."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import types
from engine.config.settings import EngineConfig
from engine.policy import registry
from engine.policy.compute_order import Order
from engine.policy.context import PolicyContext
from engine.policy.events import PassStart, Routing
from engine.policy.expert_policy import ExpertPolicy
from engine.policy.pools import split_by_experts
from engine.policy.predict.base import Prediction
from engine.policy.steps import ON_HOST, LayerPass, Step
from engine.precision.table import PLANNED
from engine.trace.trace import Trace
from engine.types import ExpertId
from tests.engine.policy.made import TraceView, learned_arrays, make_context, make_trace, run_over

LAYERS = 3
EXPERTS = 8
CHOSEN = 2
MIXED: dict[str, Any] = {"precision__bits": 8, "precision__low_bits": 2}
PLANNED_BITS: dict[str, Any] = {
    "precision__bits": 16,
    "precision__options__table": ["g8g8g8g8", "2", "gggg2222"],
}


@pytest.mark.parametrize(
    ("names", "registered"),
    [
        (types.AllocationName, registry.ALLOCATIONS),
        (types.OrderName, registry.ORDERS),
        (types.QueueName, registry.QUEUES),
        (types.PlacementName, registry.PLACEMENTS),
        (types.PlanName, registry.PLANS),
        (types.PrecisionName, registry.PRECISIONS),
    ],
)
def test_registered_names_are_the_names_that_configs_allow(
    names: Any, registered: dict[str, Any]
) -> None:
    assert set(get_args(names)) == set(registered)


# --- eviction, allocation and scope: the cache ---------------------------------------------------

choices = st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=5, unique=True)
# Of each layer pass: the choices of its micro-batches, predictions for the next layer, precisions
# (None: skip) and experts that the host computes where they are missing.
layer_passes = st.lists(
    st.tuples(
        st.lists(choices, min_size=1, max_size=3),
        st.dictionaries(st.integers(0, EXPERTS - 1), st.floats(0, 1), max_size=5),
        st.dictionaries(st.integers(0, EXPERTS - 1), st.sampled_from([None, 2, 8]), max_size=4),
        st.sets(st.integers(0, EXPERTS - 1), max_size=3),
    ),
    max_size=15,
)
histories = st.integers(0, 2**16).map(lambda seed: random_trace(seed, passes=6))


def random_trace(seed: int, passes: int) -> Trace:
    """Skewed random choices; the first pass of each of two groups has several tokens."""
    random = np.random.default_rng(seed)
    tokens = [(4, 2), *[(1, 1)] * (passes // 2 - 1)] * 2
    scores = random.random((sum(map(sum, tokens)), LAYERS, EXPERTS)) + np.linspace(0, 1, EXPERTS)
    groups = [0] * (passes // 2) + [1] * (passes // 2)
    chosen = np.argsort(-scores, -1)[..., :CHOSEN]
    return make_trace(chosen, tokens=tokens, groups=groups, among=EXPERTS, seed=seed)


@pytest.mark.parametrize("scope", get_args(types.ScopeName))
@pytest.mark.parametrize("allocation", registry.ALLOCATIONS)
@pytest.mark.parametrize("eviction", registry.EVICTIONS)
@given(
    stream=layer_passes,
    slots=st.integers(LAYERS, LAYERS * EXPERTS),
    seed=st.integers(0, 3),
    hold=st.booleans(),
)
@settings(max_examples=20, deadline=None)
def test_a_cache_serves_every_demand_once_within_its_slots(
    eviction: Any, allocation: Any, scope: Any, stream: Any, slots: int, seed: int, hold: bool
) -> None:
    trace = random_trace(seed, passes=6)
    context = make_context(
        LAYERS,
        EXPERTS,
        history=trace,
        future=trace,
        cache__eviction=eviction,
        cache__allocation=allocation,
        cache__scope=scope,
        cache__options__hold_predicted=hold,
        **MIXED,
    )
    policy = registry.build_policy(context, slots, host_compute=True)
    cache = policy.cache
    assert cache.slots == slots
    cache.begin_sequences()
    for number, (demands, predicted, wanted, on_host) in enumerate(stream):
        layer = number % LAYERS
        if layer == 0:
            context.future.begin_pass()
        context.future.begin_layer(layer)
        before = set(cache.residents(layer))
        cache.begin(layer)
        steps: list[Step] = []
        for demand in demands:
            steps += cache.demand(demand, {e: wanted[e] for e in wanted if e in demand}, on_host)
            fetches = cache.prefetch((layer + 1) % LAYERS, predicted, {}, predicted)
            pinned = {step.slot for step in steps}
            assert not pinned & {fetch.slot for fetch in fetches}, "a pinned slot was taken"
        steps += cache.finish()
        asked = {e for demand in demands for e in demand}
        found = [step.expert.expert for step in steps]
        assert len(found) == len(set(found)), "an expert was scheduled twice"
        assert asked - set(wanted) <= set(found) <= asked
        hits = {step.expert for step in steps if step.hit}
        if scope == "layer":
            assert hits <= before
        check_slot_use([step for step in steps if step.slot != ON_HOST])
        assert all(step.expert.expert in on_host for step in steps if step.slot == ON_HOST)
        cache.end()
        cache.check_integrity()
        if eviction == "none":
            assert not cache.residents(layer)


def check_slot_use(steps: list[Step]) -> None:
    """A slot has one expert at a time: whoever takes it over waits for its last tenant."""
    tenant: dict[int, ExpertId] = {}
    for step in steps:
        assert step.after == tenant.get(step.slot)
        tenant[step.slot] = step.expert


@pytest.mark.parametrize("name", registry.ALLOCATIONS)
@given(slots=st.integers(LAYERS, LAYERS * EXPERTS), history=histories)
@settings(max_examples=30, deadline=None)
def test_an_allocation_spends_every_slot_within_the_bounds(
    name: Any, slots: int, history: Trace
) -> None:
    allocation = registry.ALLOCATIONS[name](make_context(LAYERS, EXPERTS, history=history))
    fractions = allocation.allocate(slots, LAYERS, EXPERTS)
    assert len(fractions) == LAYERS
    assert sum(fractions) == slots
    assert min(fractions) >= 1
    assert max(fractions) <= EXPERTS


# --- predictors ----------------------------------------------------------------------------------


def predictor_context(name: Any, trace: Trace, history: Trace | None, **more: Any) -> PolicyContext:
    stride = more.get("prefetch__options__stride", 1)
    return make_context(
        LAYERS,
        EXPERTS,
        CHOSEN,
        history=history,
        future=trace,
        learned=learned_arrays(LAYERS, EXPERTS, stride=stride),
        prefetch__predictor=name,
        **more,
    )


def all_predictions(context: PolicyContext, trace: Trace) -> list[tuple[int, int, Prediction]]:
    """(pass, layer, prediction) of every event, in order; layer -1: as the pass begins."""
    predictor = registry.PREDICTORS[context.config.prefetch.predictor](context)
    found: list[tuple[int, int, Prediction]] = []
    watches = predictor.needs & {"top_experts", "gate_input"}
    group = None
    for number, item in enumerate(trace.passes):
        if item.group != group:
            group = item.group
            predictor.begin_sequences()
        context.future.begin_pass()
        rows = slice(item.first, item.first + sum(item.tokens))
        assert trace.embeddings is not None
        assert trace.probabilities is not None
        start = PassStart(item.phase, item.tokens, trace.embeddings[rows])
        found += [(number, -1, p) for p in predictor.begin_pass(start)]
        for layer in range(LAYERS):
            for micro_batch, part in enumerate(trace.micro_batches(number)):
                if watches:
                    view = TraceView(trace, part, layer)
                    answer = predictor.gate_entered(layer, micro_batch, view)
                    found += [(number, layer, p) for p in answer]
                context.future.begin_layer(layer)
                routing = Routing(
                    trace.chosen(part, layer),
                    trace.weights[part, layer],
                    trace.probabilities[part, layer],
                )
                predictor.routed(layer, micro_batch, routing)
            found += [(number, layer, p) for p in predictor.layer_routed(layer)]
        predictor.end_pass()
    return found


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("name", registry.PREDICTORS)
@given(
    depth=st.integers(0, 4),
    extra=st.integers(0, EXPERTS),
    stride=st.integers(1, 2),
    all_later=st.booleans(),
    capacity=st.integers(1, 4),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=20, deadline=None)
def test_a_predictor_hints_only_at_other_layers_of_the_model_and_repeats_exactly(
    name: Any,
    learns: bool,
    depth: int,
    extra: int,
    stride: int,
    all_later: bool,
    capacity: int,
    seed: int,
) -> None:
    trace = random_trace(seed, passes=6)
    context = [
        predictor_context(
            name,
            trace,
            random_trace(seed + 1, passes=4) if learns else None,
            prefetch__depth=depth,
            prefetch__extra_experts=extra,
            prefetch__options__stride=stride,
            prefetch__options__all_later=all_later,
            prefetch__options__capacity=capacity,
        )
        for _ in range(2)
    ]
    first, second = (all_predictions(c, trace) for c in context)
    assert first == second
    if depth == 0 and not (name == "activation_path" and all_later):
        assert first == []
    for _, layer, prediction in first:
        assert 0 <= prediction.layer < LAYERS
        assert prediction.layer != layer
        assert len(set(prediction.experts)) == len(prediction.experts)
        assert all(0 <= e < EXPERTS for e in prediction.experts)
        assert all(type(e) is int for e in prediction.experts)
        assert len(prediction.scores) in (0, len(prediction.experts))
        assert all(0 <= score <= 1 + 1e-6 for score in prediction.scores)
        assert list(prediction.scores) == sorted(prediction.scores, reverse=True)


@pytest.mark.parametrize("name", sorted(set(registry.PREDICTORS) - {"none"}))
def test_a_predictor_that_was_asked_for_predicts_something(name: Any) -> None:
    trace = random_trace(1, passes=10)
    context = predictor_context(name, trace, random_trace(2, passes=4), prefetch__depth=1)
    assert any(prediction.experts for _, _, prediction in all_predictions(context, trace))


# --- the whole policy ----------------------------------------------------------------------------


@pytest.mark.parametrize("eviction", registry.EVICTIONS)
@pytest.mark.parametrize("predictor", registry.PREDICTORS)
@given(
    precision=st.sampled_from(sorted(registry.PRECISIONS)),
    placement=st.sampled_from(sorted(registry.PLACEMENTS)),
    scope=st.sampled_from(["layer", "shared"]),
    slots=st.integers(LAYERS, LAYERS * EXPERTS),
)
@settings(max_examples=4, deadline=None)
def test_hits_and_misses_of_any_policy_are_its_look_ups(
    eviction: Any,
    predictor: Any,
    precision: Any,
    placement: Any,
    scope: Any,
    slots: int,
) -> None:
    trace = random_trace(slots, passes=6)
    table = PLANNED_BITS if precision in PLANNED else {}
    context = predictor_context(
        predictor,
        trace,
        None,
        prefetch__depth=1,
        cache__eviction=eviction,
        cache__scope=scope,
        precision__scheme=precision,
        placement__name=placement,
        **{**MIXED, **table},
    )
    policy = registry.build_policy(context, slots, host_compute=True)
    run_over(policy, trace, lambda done: policy.cache.check_integrity())
    counters = policy.counters
    for phase in get_args(types.Phase):
        lookups = sum(
            len(trace.demands(number, layer))
            for number, item in enumerate(trace.passes)
            if item.phase == phase
            for layer in range(LAYERS)
        )
        assert counters.hits[phase] + counters.misses[phase] == lookups


@pytest.mark.parametrize("scope", ["layer", "shared"])
@pytest.mark.parametrize("scheme", ["by_layer", "gate_threshold", "popularity_mass"])
@pytest.mark.parametrize("eviction", registry.EVICTIONS)
@given(
    predictor=st.sampled_from(["none", "repeat_last", "popularity"]),
    fractions=st.lists(st.integers(1, EXPERTS), min_size=3, max_size=3),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=6, deadline=None)
def test_records_kept_apart_lie_in_slots_of_their_own_size(
    eviction: Any, scheme: Any, scope: Any, predictor: Any, fractions: list[int], seed: int
) -> None:
    trace = random_trace(seed, passes=8)
    table = PLANNED_BITS if scheme in PLANNED else {}
    context = make_context(
        LAYERS,
        EXPERTS,
        history=trace,
        future=trace,
        prefetch__predictor=predictor,
        prefetch__depth=1,
        cache__eviction=eviction,
        cache__scope=scope,
        precision__scheme=scheme,
        **{**MIXED, **table},
    )
    kept = (16, 8, 2) if scheme in PLANNED else (8, 2)
    slots = {bits: LAYERS * fraction for bits, fraction in zip(kept, fractions, strict=False)}
    policy = registry.build_policy(context, slots, host_compute=False)
    allowed: list[tuple[int | None, tuple[int, ...]]] = []
    for pool in registry.build_pools(context, slots):
        allowed += [(pool.layer, pool.bits)] * pool.slots
    seen = 0

    def check(done: LayerPass) -> None:
        nonlocal seen
        policy.cache.check_integrity()
        for step in done.steps:
            layer, bits = allowed[step.slot]
            assert step.bits in bits
            assert layer in (None, step.expert.layer)
            seen += 1

    run_over(policy, trace, check)
    assert seen
    counters = policy.counters
    lookups = sum(
        len(trace.demands(n, layer)) for n in range(len(trace.passes)) for layer in range(LAYERS)
    )
    assert sum(counters.hits.values()) + sum(counters.misses.values()) == lookups


@given(
    experts=st.dictionaries(st.integers(0, 20), st.integers(1, 64), min_size=1, max_size=16),
    fraction=st.floats(0, 1),
)
@settings(max_examples=100, deadline=None)
def test_slots_split_in_proportion_to_experts(experts: dict[int, int], fraction: float) -> None:
    total = sum(experts.values())
    slots = max(len(experts), round(fraction * total))
    split = split_by_experts(slots, experts)
    assert sum(split.values()) == slots
    assert all(1 <= split[layer] <= count for layer, count in experts.items())


def test_a_limited_prediction_keeps_the_scores_of_the_experts_that_are_left() -> None:
    trace = make_trace([[[6, 5], [6, 5]]] * 2 + [[[6, 4], [6, 4]]], tokens=[(3,)])
    context = make_context(
        2,
        prefetch__predictor="next_gate",
        prefetch__depth=1,
        prefetch__options__limit=1,
        cache__eviction="p_freq",
        precision__scheme="popularity_mass",
        **MIXED,
    )
    policy = registry.build_policy(context, 8, host_compute=False)
    run_over(policy, trace)
    assert policy.counters.prefetched == 1


# --- queues, orders ------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", registry.ORDERS)
@given(ready=st.sets(st.integers(0, 5)), tokens=st.dictionaries(st.integers(0, 5), st.integers(1)))
def test_an_order_ends_with_every_step_run(
    name: Any, ready: set[int], tokens: dict[int, int]
) -> None:
    order: Order = registry.ORDERS[name]()
    pending = [Step(ExpertId(0, index), index, 16, hit=index < 2) for index in range(6)]
    while pending:
        arrived = frozenset(ready)
        step = order.next(pending, lambda s, arrived=arrived: s.slot in arrived, tokens)  # type: ignore[misc]
        if step is None:
            ready = ready | {min(s.slot for s in pending)}
            continue
        pending.remove(step)


# --- the trivial mechanisms ----------------------------------------------------------------------


def lru_policy(slots: int, layers: int = 1, **overlay: Any) -> ExpertPolicy:
    return registry.build_policy(make_context(layers, **overlay), slots, host_compute=False)


def test_residents_are_computed_before_they_give_way_to_waves() -> None:
    cache = lru_policy(2).cache
    cache.begin(0)
    cache.demand([0, 1])
    cache.finish()
    cache.end()
    cache.begin(0)
    first = cache.demand([2, 3], more_to_come=True)
    steps = [*first, *cache.demand([0, 1]), *cache.finish()]
    cache.end()
    assert [step.expert.expert for step in steps if step.hit] == [0, 1]


def test_the_trivial_mechanisms_decide_what_their_name_says() -> None:
    context = make_context()
    assert registry.PLACEMENTS["device"](context).on_host([(0, 1)]) == frozenset()
    assert registry.PRECISIONS["uniform"](context).demanded(0, "decode", Routing([[0]])) == {}
    assert registry.ALLOCATIONS["uniform"](context).allocate(7, 3, 8) == (3, 2, 2)
    config = EngineConfig()
    assert registry.PLANS["fixed"]().plan(config, context.facts, None).config == config

"""Slots that come and go: nobody shares one, nobody is lost, whatever happens in between."""

from hypothesis import given
from hypothesis import strategies as st

from engine.policy.evict.lru import LruEviction
from engine.policy.expert_cache import ExpertCache
from engine.policy.pools import pools_of_layers

LAYERS, EXPERTS, FIXED, LENT = 2, 12, 3, 4


@given(
    st.lists(
        st.one_of(
            st.floats(0, 1),
            st.tuples(
                st.integers(0, LAYERS - 1),
                st.lists(st.integers(0, EXPERTS - 1), min_size=1, max_size=6, unique=True),
            ),
        ),
        max_size=30,
    )
)
def test_slots_are_kept_track_of(events: list):
    cache = ExpertCache(
        pools_of_layers([FIXED + LENT] * LAYERS, (16,)),
        LruEviction,
        layers=LAYERS,
        elastic=[LENT] * LAYERS,
    )
    fraction = 1.0
    for event in events:
        if isinstance(event, float):
            before = {e for layer in range(LAYERS) for e in cache.residents(layer)}
            opened = sum(cache.slots_by_pool)
            taken = cache.open_elastic(event)
            after = {e for layer in range(LAYERS) for e in cache.residents(layer)}
            assert after <= before
            assert len(taken) == max(0, opened - sum(cache.slots_by_pool))
            fraction = event
        else:
            layer, experts = event
            cache.begin(layer)
            steps = [*cache.demand(experts), *cache.finish()]
            assert {step.expert.expert for step in steps} == set(experts)
            cache.end()
        cache.check_integrity()
        assert cache.slots_by_pool == (FIXED + int(LENT * fraction + 1e-9),) * LAYERS
        assert all(
            len(cache.residents(layer)) <= FIXED + int(LENT * fraction + 1e-9)
            for layer in range(LAYERS)
        )


def test_the_least_lately_used_leave_first():
    cache = ExpertCache(pools_of_layers([4], (16,)), LruEviction, layers=1, elastic=[2])
    for expert in range(4):
        cache.begin(0)
        cache.demand([expert])
        cache.finish()
        cache.end()
    cache.open_elastic(0.0)
    assert [expert.expert for expert in cache.residents(0)] == [2, 3]

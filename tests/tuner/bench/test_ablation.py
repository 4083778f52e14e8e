"""Each ablation differs from its policy in one mechanism, and only mechanisms it has are taken."""

import pytest

from engine.config.settings import EngineConfig
from tuner.bench.ablation import ablate
from tuner.definition.policies import PolicyFile, load_policy, policy_names

BASE = EngineConfig()
EXPECTED = {
    "on_demand": [],
    "lru": [],
    "popularity": ["evict"],
    "next_gate": ["predict", "transfer"],
    "activation_path": ["predict", "evict", "scope", "transfer"],
    "fate": ["predict", "evict", "allocate", "transfer", "order", "precision"],
    "hobbit": ["predict", "evict", "transfer", "precision"],
    "klotski": ["predict", "transfer", "order", "batch"],
    "monde": ["place"],
    "pregated": ["predict", "transfer"],
    "promoe": ["predict", "transfer", "order"],
    "scratchpipe": ["predict", "evict", "transfer"],
    "fmoe": ["predict", "evict", "transfer"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_preset_loses_each_of_its_mechanisms_once(name: str):
    assert [found.mechanism for found in ablate(load_policy(name), BASE)] == EXPECTED[name]


@pytest.mark.parametrize("name", policy_names())
def test_all_other_settings_stay(name: str):
    policy = load_policy(name)
    whole = BASE.overlay(policy.engine).flat()
    allowed = {
        "predict": {"prefetch.predictor", "prefetch.depth"},
        "evict": {"cache.eviction", "cache.options"},
        "allocate": {"cache.allocation"},
        "scope": {"cache.scope"},
        "transfer": {"transfer.queue"},
        "order": {"batch.order"},
        "place": {"placement.name"},
        "precision": {"precision.scheme", "precision.low_bits"},
        "batch": {"batch.count", "plan.name"},
    }
    for found in ablate(policy, BASE):
        changed = {path for path, value in found.config.flat().items() if value != whole[path]}
        assert changed
        assert changed <= allowed[found.mechanism]


def test_precision_stays_at_the_presets_own_bits():
    found = {f.mechanism: f.config for f in ablate(load_policy("fate"), BASE)}
    assert found["precision"].precision.bits == 4
    assert found["predict"].precision.scheme == "popularity_mass"


def test_the_mask_of_predicted_experts_goes_with_the_eviction():
    found = {f.mechanism: f.config for f in ablate(load_policy("hobbit"), BASE)}
    assert found["evict"].cache.options["hold_predicted"] is False
    assert found["predict"].cache.options["hold_predicted"] is True


def test_settings_decide_what_is_there_to_switch_off():
    klotski = load_policy("klotski")
    alone = ablate(klotski, BASE, {"batch.count": "1", "transfer.queue": "fifo"})
    assert [found.mechanism for found in alone] == ["predict", "order"]
    settings = {"cache.expert_bytes": "25%", "batch.count": "8"}
    for found in ablate(klotski, BASE, settings):
        assert found.config.cache.expert_bytes == "25%"
        assert found.config.batch.count == (1 if found.mechanism == "batch" else 8)


def test_a_planned_batch_is_fixed_at_one():
    planned = PolicyFile(description="d", engine={"plan.name": "io_compute"})
    (found,) = ablate(planned, BASE)
    assert (found.mechanism, found.config.plan.name, found.config.batch.count) == (
        "batch", "fixed", 1,
    )  # fmt: skip


def test_what_comes_from_the_base_alone_is_ablated_too():
    base = BASE.overlay({"placement.name": "host_below"})
    cached = PolicyFile(description="d", engine={"cache.eviction": "lru"})
    assert [found.mechanism for found in ablate(cached, base)] == ["place"]
    assert not ablate(load_policy("lru"), base), "the preset computes on the device"

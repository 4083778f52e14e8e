"""The memory equation: what fits, and the smallest budget that would."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.config.settings import EngineConfig
from engine.errors import ConfigError, InfeasibleError
from engine.facts.card_memory import CONTEXT_BYTES
from engine.facts.model import ModelFacts
from engine.layout.prequantized import PrequantizedFormat
from engine.layout.record import Part, record_bytes_table
from engine.memory.plan import minimum_slots, on_opened_device, resolve, slots_by_layer
from engine.memory.scoring import layer_wise

PARTS = (Part("gate_up_proj", (1024, 512)), Part("down_proj", (512, 512)))


def make_facts(**changes: Any) -> ModelFacts:
    table = record_bytes_table(PARTS)
    values: dict[str, Any] = {
        "id": "m",
        "path": "/m",
        "revision": "local",
        "fingerprint": "f",
        "family": "qwen3_moe",
        "layers": 4,
        "moe_layers": 4,
        "experts": 16,
        "experts_per_token": 2,
        "hidden_size": 512,
        "vocabulary": 1000,
        "max_positions": 2048,
        "non_expert_bytes": 10_000_000,
        "parts": PARTS,
        "record_bytes": {str(bits): size for bits, size in table.items()},
        "expert_bytes": {str(bits): size * 64 for bits, size in table.items()},
        "kv_bytes_per_token": 1000,
        "predictors": ("none", "next_gate"),
        "has_tokenizer": True,
        "in_place_16": True,
    }
    return ModelFacts(**{**values, **changes})


@pytest.mark.parametrize(
    ("prequantized", "bits", "codes_bytes"),
    [
        (
            PrequantizedFormat("fp8", 128, 128),
            8,
            (1024 * 512 + 8 * 4 * 4) + (512 * 512 + 4 * 4 * 4),
        ),
        (PrequantizedFormat("mxfp4", 1, 32), 4, 1536 * 512 // 2 + 1536 * 16),
        (None, 16, 1536 * 512 * 2),
    ],
)
def test_prequantized_records_are_the_codes_and_scales_of_the_checkpoint(
    prequantized: PrequantizedFormat | None, bits: int, codes_bytes: int
) -> None:
    config = EngineConfig().overlay({"precision.bits": "prequantized"})
    facts = make_facts(prequantized=prequantized)
    resolved, plan = resolve(config, facts)
    assert (resolved.precision.bits, resolved.precision.prequantized) == (
        bits,
        prequantized is not None,
    )
    assert codes_bytes <= plan.slots_bytes // plan.slots < codes_bytes + 4096 + 4 * 64
    assert resolve(resolved, facts)[0] == resolved
    assert ModelFacts.from_json(json.loads(json.dumps(facts.to_json()))) == facts


@given(st.integers(50_000_000, 400_000_000), st.sampled_from([16, 8, 4, 2]))
def test_auto_fills_the_budget_and_never_passes_it(budget: int, bits: int) -> None:
    facts = make_facts()
    config = EngineConfig().overlay({"budget.vram_bytes": budget, "precision.bits": bits})
    try:
        resolved, plan = resolve(config, facts)
    except InfeasibleError as error:
        assert (error.smallest_bytes or 0) > budget  # noqa: PT017 (either outcome is right)
        return
    record = plan.slots_bytes // plan.slots
    assert plan.total_bytes <= budget
    assert plan.slots == 64 or plan.total_bytes + record > budget
    assert resolved.cache.expert_bytes == plan.slots_bytes


def test_the_smallest_budget_named_really_fits() -> None:
    facts = make_facts()
    config = EngineConfig().overlay({"budget.vram_bytes": 1_000_000})
    with pytest.raises(InfeasibleError) as caught:
        resolve(config, facts)
    assert caught.value.smallest_bytes is not None
    _, plan = resolve(config.overlay({"budget.vram_bytes": caught.value.smallest_bytes}), facts)
    assert plan.slots == minimum_slots(config, facts)


def test_a_share_counts_experts_at_the_runs_own_precision() -> None:
    for bits in (16, 4):
        config = EngineConfig().overlay({"cache.expert_bytes": "25%", "precision.bits": bits})
        assert resolve(config, make_facts())[1].slots == 16


def test_bits_that_the_shapes_forbid_are_refused() -> None:
    odd = (Part("gate_up_proj", (80, 40)), Part("down_proj", (40, 40)))
    with pytest.raises(ConfigError, match=r"precision\.bits = 4 does not suit"):
        resolve(EngineConfig().overlay({"precision.bits": 4}), make_facts(parts=odd))


@given(st.integers(1, 500), st.integers(1, 40))
def test_uniform_slots_sum_up_and_differ_by_at_most_one(slots: int, layers: int) -> None:
    fractions = slots_by_layer(slots, layers)
    assert sum(fractions) == slots
    assert max(fractions) - min(fractions) <= 1


def kv_plan(layers: int = 4, plain: int = 4, **settings: Any) -> int:
    config = EngineConfig().overlay({"kv.max_tokens": 1024, "device.name": "cuda:0", **settings})
    return resolve(config, make_facts(layers=layers, kv_plain_layers=plain))[1].kv_bytes


def test_fewer_bits_take_their_codes_and_scales_and_a_window_at_sixteen() -> None:
    token = 1000
    assert kv_plan() == 1024 * token
    codes_and_scales = {8: 0.5 + 3 / 32, 4: 0.25 + 3 / 32}
    for bits, ratio in codes_and_scales.items():
        expected = 95 * token + (1024 - 64) * token * ratio
        assert kv_plan(**{"kv.bits": bits}) == pytest.approx(expected, rel=1e-3)
    short = {"kv.max_tokens": 64, "prefill.chunk_tokens": 8}
    assert kv_plan(**short, **{"kv.bits": 4}) == kv_plan(**short)


def test_layers_that_are_not_plain_stay_at_sixteen_bits() -> None:
    half = (kv_plan() + kv_plan(**{"kv.bits": 4})) / 2
    assert kv_plan(plain=2, **{"kv.bits": 4}) == pytest.approx(half, rel=1e-3)


def test_keys_and_values_on_the_host_leave_two_layers_on_the_device() -> None:
    placed = {"kv.placement": "host"}
    assert kv_plan(**placed) == kv_plan() // 2
    assert kv_plan(**placed, **{"device.name": "cpu"}) == kv_plan()
    assert kv_plan(plain=0, **placed) == kv_plan()
    config = EngineConfig().overlay({**placed, "device.name": "cuda:0", "budget.ram_bytes": 10**6})
    with pytest.raises(InfeasibleError, match=r"1\.54 MB of keys and values"):
        resolve(config, make_facts(kv_plain_layers=4))
    resolve(config.overlay({"budget.ram_bytes": 2 * 10**6}), make_facts(kv_plain_layers=4))


def test_fewer_bits_are_refused_by_name_where_no_layer_is_plain() -> None:
    config = EngineConfig().overlay({"kv.bits": 4})
    with pytest.raises(ConfigError, match=r"kv\.bits = 4 does not suit .qwen3_moe."):
        resolve(config, make_facts())


@pytest.mark.parametrize("setting", [{"kv.bits": 8}, {"kv.keep_fraction": 0.5}])
def test_a_pass_layer_by_layer_does_not_judge_what_only_the_kv_cache_loses(
    setting: dict[str, Any],
) -> None:
    config = EngineConfig().overlay(setting)
    with pytest.raises(InfeasibleError, match="pass through the kv_cache"):
        layer_wise(config, make_facts(kv_plain_layers=4), 100)


def test_a_share_of_the_positions_is_what_merged_layers_take_and_the_total_is_smaller() -> None:
    token, mark = 1000, 4 * 12
    assert kv_plan(**{"kv.keep_fraction": 0.25}) == (1024 // 4 + 1) * (token + mark)
    half = kv_plan(plain=2, **{"kv.keep_fraction": 0.25})
    assert half == 1024 * token // 2 + (1024 // 4 + 1) * (token + mark) // 2
    facts = make_facts(layers=4, kv_plain_layers=4)
    long = EngineConfig().overlay({"kv.max_tokens": 1 << 16})
    whole = resolve(long, facts)[1].total_bytes
    quarter = resolve(long.overlay({"kv.keep_fraction": 0.25}), facts)[1].total_bytes
    assert quarter < whole


def test_a_share_is_refused_by_name_where_no_layer_is_plain_and_beside_fewer_bits() -> None:
    config = EngineConfig().overlay({"kv.keep_fraction": 0.5})
    with pytest.raises(ConfigError, match=r"kv\.keep_fraction = 0\.5 does not suit .qwen3_moe."):
        resolve(config, make_facts())
    for path, value in (("kv.bits", 4), ("kv.placement", "host")):
        with pytest.raises(ConfigError, match=rf"kv\.keep_fraction = 0\.5 and {path} = {value}: "):
            resolve(config.overlay({path: value}), make_facts(kv_plain_layers=4))


def test_a_context_that_was_measured_takes_the_place_of_the_estimate() -> None:
    facts, free = make_facts(), EngineConfig().overlay({"budget.vram_bytes": 0})
    before = resolve(on_opened_device(free, "cuda:0"), facts).memory.total_bytes
    opened = on_opened_device(free, "cuda:0", 250_000_001)
    found = resolve(opened, facts)
    assert found.config.device.context_bytes == 256_000_000, "processes differ a little"
    assert before - found.memory.total_bytes == CONTEXT_BYTES - 256_000_000
    again = on_opened_device(found.config, "cuda:0", 290_000_000)
    assert resolve(again, facts) == found, "what was planned to fit still fits"
    assert resolve(on_opened_device(opened, "cpu"), facts).memory.total_bytes == (
        resolve(free, facts).memory.total_bytes
    )


def test_captured_decoding_takes_a_pool_for_each_micro_batch_of_an_accelerator() -> None:
    def taken(device: str, count: int) -> int:
        settings = {"device.name": device, "batch.count": count, "cache.expert_bytes": "50%"}
        plans = (
            resolve(EngineConfig().overlay({**settings, "compute.capture": on}), make_facts())
            for on in (False, True)
        )
        eager, captured = (plan.memory.total_bytes for plan in plans)
        return captured - eager

    assert taken("cpu", 4) == 0
    one, four = taken("cuda:0", 1), taken("cuda:0", 4)
    pool = (four - one) // 3
    assert 22 << 20 < pool < 24 << 20
    assert one == pool + (32 << 20)

"""Plans of precisions: the table in a config, and how it is made."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.config.exactness import lossy_settings
from engine.config.settings import EngineConfig
from engine.errors import ConfigError, InfeasibleError
from engine.memory.plan import resolve
from engine.precision.allocate import (
    load_sensitivities,
    save_sensitivities,
    sensitivities_path,
    spread,
    spread_by_popularity,
    with_table,
)
from engine.precision.table import average_bits, bits_table, run_bits, write_table
from engine.types import Bits
from tests.engine.memory.test_plan import make_facts
from tests.engine.policy.made import make_trace

curves = st.dictionaries(
    st.sampled_from([2, 3, 4, 8]), st.floats(0, 10), min_size=1, max_size=4
)  # fmt: skip


@given(losses=st.lists(curves, min_size=1, max_size=4), fraction=st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_a_plan_keeps_its_average_and_no_single_step_mends_it(
    losses: list[dict[Bits, float]], fraction: float
) -> None:
    fewest = sum(map(min, losses)) / len(losses)
    most = sum(map(max, losses)) / len(losses)
    average = fewest + fraction * (most - fewest)
    found = spread(losses, average)
    assert sum(found) / len(found) <= average + 1e-6
    assert all(bits in curve for bits, curve in zip(found, losses, strict=True))
    loss = sum(curve[bits] for bits, curve in zip(found, losses, strict=True))
    best = min(
        sum(curve[bits] for bits, curve in zip(plan, losses, strict=True))
        for plan in itertools.product(*losses)
        if sum(plan) / len(plan) <= average + 1e-9
    )
    # Greedy on hulls is at most one unit's steps away from the best plan.
    assert loss <= best + max(max(c.values()) - min(c.values()) for c in losses) + 1e-9


def test_what_matters_more_gets_more_bits() -> None:
    losses: list[dict[Bits, float]] = [{2: 1.0, 4: 0.1}, {2: 9.0, 4: 0.1}, {2: 0.2, 4: 0.1}]
    assert spread(losses, 3.0) == [2, 4, 2]
    assert spread(losses, 3.4) == [4, 4, 2]
    with pytest.raises(ConfigError, match="below the fewest"):
        spread(losses, 1.5)


def test_popular_experts_get_more_bits() -> None:
    trace = make_trace([[[0, 1]] * 2] * 30 + [[[2, 3]] * 2], among=4)
    facts = make_facts(moe_layers=2, experts=4)
    table = spread_by_popularity(trace, 4.0, facts)
    assert average_bits(table) <= 4.0
    for row in table:
        assert min(row[:2]) > max(row[2:])


def test_a_table_is_read_as_it_was_written_and_refused_where_it_does_not_fit() -> None:
    facts = make_facts(moe_layers=2, experts=4)
    table = ((4, 4, 4, 4), (16, 8, 4, 2))
    rows = write_table(table)  # type: ignore[arg-type]
    assert rows == ["4", "g842"]
    config = planned(rows)
    assert bits_table(config, facts) == table
    assert run_bits(config) == (16, 8, 4, 2)
    for wrong, message in [
        (["4"], "2 MoE layers"),
        (["4", "44"], "4 digits"),
        (["4", "5555"], "4 digits"),
        ("44", "rows"),
    ]:
        with pytest.raises(ConfigError, match=message):
            bits_table(planned(wrong), facts)
    assert bits_table(EngineConfig(), facts) is None


def planned(rows: object) -> EngineConfig:
    return EngineConfig().overlay(
        {"precision.scheme": "by_layer", "precision.bits": 16, "precision.options.table": rows}
    )


def test_fewer_bits_hold_more_experts_in_the_same_memory() -> None:
    facts = make_facts()
    capacity = {"cache.expert_bytes": 20_000_000}
    _, mixed = resolve(planned(["4", "2", "4", "2"]).overlay(capacity), facts)
    _, fine = resolve(EngineConfig().overlay({"precision.bits": 4, **capacity}), facts)
    assert mixed.slots > fine.slots
    assert mixed.slots_bytes <= 20_000_000
    assert set(mixed.slots_by_bits) == {4, 2}
    fractions = [mixed.slots_by_bits[bits] / 32 for bits in (4, 2)]
    assert (
        abs(fractions[0] - fractions[1]) <= 0.1
    )  # every layer keeps the same fraction of its experts
    with pytest.raises(InfeasibleError, match="at least 4 slots"):
        resolve(planned(["4", "2", "4", "2"]).overlay({"cache.expert_bytes": 300_000}), facts)


def test_a_resolved_plan_resolves_to_itself() -> None:
    facts = make_facts()
    config, memory = resolve(
        planned(["4", "2", "8", "2"]).overlay({"cache.expert_bytes": "30%"}), facts
    )
    assert config.precision.bits == 8
    again, same = resolve(config, facts)
    assert (again, same) == (config, memory)


def test_coarse_misses_can_have_a_share_of_the_slots() -> None:
    facts = make_facts()
    base = {
        "precision.bits": 8,
        "precision.low_bits": 2,
        "precision.scheme": "gate_threshold",
        "cache.expert_bytes": "50%",
    }
    _, one = resolve(EngineConfig().overlay(base), facts)
    _, two = resolve(EngineConfig().overlay({**base, "cache.low_bits_fraction": 0.25}), facts)
    assert one.slots_by_bits == {}
    assert set(two.slots_by_bits) == {8, 2}
    assert two.slots_bytes <= one.slots_bytes
    assert two.slots > one.slots


def test_the_bits_of_every_expert_belong_to_the_quality_key() -> None:
    one, other = planned(["4", "2"]), planned(["2", "4"])
    assert lossy_settings(one) != lossy_settings(other)
    assert "precision.options" not in lossy_settings(EngineConfig())


def test_a_plan_says_what_it_needs(tmp_path: Path) -> None:
    facts = make_facts()

    def made(**options: object) -> EngineConfig:
        scheme = options.pop("scheme", "by_sensitivity")
        named = {f"precision.options.{name}": value for name, value in options.items()}
        return with_table(
            EngineConfig().overlay({"precision.scheme": scheme, **named}), facts, tmp_path
        )

    with pytest.raises(ConfigError, match="average_bits"):
        made()
    with pytest.raises(ConfigError, match="--sensitivity"):
        made(average_bits=3)
    with pytest.raises(ConfigError, match=r"precision\.options\.trace"):
        made(scheme="by_popularity", average_bits=3)
    with pytest.raises(ConfigError, match="one digit for each MoE layer"):
        made(scheme="by_layer")
    path = sensitivities_path(tmp_path, facts, EngineConfig())
    save_sensitivities(path, [{4: 0.1, 2: 1.0}] * 3 + [{4: 0.1, 2: 9.0}])
    assert load_sensitivities(path) is not None
    assert made(average_bits=2.5).precision.options["table"] == ["2", "2", "2", "4"]
    path.write_text("[]")
    with pytest.raises(ConfigError, match="tune profile --model"):
        made(average_bits=3)

"""Regret, the policy's fraction of the time, and efficiency against the fastest resident row."""

import pytest

from engine.config.settings import EngineConfig
from tests.tuner.bench.report.made import make_row, timed
from tuner.bench.report.derived import derived_metrics

FOUR = EngineConfig().overlay({"precision.bits": 4})
READS = {"oracle_bytes_per_token": [6e6] * 2, "read_bytes_per_s": [1e9] * 2}  # 6 ms


def test_regret_pairs_rounds_and_may_be_negative():
    row = make_row("lru", oracle_hit_rate=[0.8, 0.9], expert_hit_rate=[0.7, 0.7])
    ahead = make_row("next_gate", oracle_hit_rate=[0.8], expert_hit_rate=[0.9])
    first, second = derived_metrics([row, ahead])
    assert first["regret"].value == pytest.approx(0.15)
    assert first["regret"].n == 2
    assert second["regret"].value == pytest.approx(-0.1)


def test_policy_share_is_of_the_wall_time():
    (found,) = derived_metrics([make_row("lru", **timed(wall=20, busy=10, policy=1))])
    assert found["policy_fraction"].value == pytest.approx(0.05)


@pytest.mark.parametrize(("read_bytes", "efficiency"), [(6e6, 0.6), (2e6, 0.5)])
def test_efficiency_takes_what_is_longer_of_compute_and_reading(read_bytes: float, efficiency):
    held = make_row("lru", resident_fraction=[1.0], **timed(wall=5, busy=5))
    slow = make_row("lru", resident_fraction=[1.0], name="slow", **timed(wall=9, busy=9))
    reads = {**READS, "oracle_bytes_per_token": [read_bytes] * 2}
    quarter = make_row("lru", resident_fraction=[0.25], **timed(wall=10, busy=5), **reads)
    _, _, found = derived_metrics([held, slow, quarter])
    assert found["efficiency_ratio"].value == pytest.approx(efficiency)


def test_efficiency_needs_equal_bits():
    held = make_row(None, config=FOUR, name="r", resident_fraction=[1.0], **timed(wall=5, busy=5))
    other = make_row("lru", resident_fraction=[0.25], **timed(wall=10, busy=5), **READS)
    assert "efficiency_ratio" not in derived_metrics([held, other])[1]


def test_where_two_tiers_deliver_no_one_speed_bounds():
    held = make_row("lru", resident_fraction=[1.0], **timed(wall=5, busy=5))
    moved = {"transfer_bytes_per_token": [8e6] * 2, "disk_bytes_per_token": [4e6] * 2}
    other = make_row("lru", resident_fraction=[0.2], **timed(wall=10, busy=5), **READS, **moved)
    assert "efficiency_ratio" not in derived_metrics([held, other])[1]
